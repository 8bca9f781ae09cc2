// What is logged of calls.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace palimpsest {

// What is told of a call when it has ended. Zero and empty values are left out.
struct CallLog {
  std::string id;
  std::string method;
  std::string owner;
  std::string trace_id;
  std::string span_id;
  std::string parent_span_id;
  std::string trace_state;
  std::string model;
  std::string session;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t position = 0;      // where the context stands at the end
  absl::Duration read_time;  // until the request was read: a worker waited for, parsed, turned into tokens
  absl::Duration queue_time;
  absl::Duration time_to_first_token;
  absl::Duration total_time;
  std::string code;
  std::string error;  // the message that the caller got
  std::string peer;
};
void LogCall(const CallLog& call);

// From now on what gRPC and protobuf have to say is in the log (base/log.h), in the form of all its lines; before, they
// write to standard error as they like. GRPC_VERBOSITY says how much gRPC tells: by default errors only.
void LogLibraries();

// While one lives, errors that gRPC reports on this thread are kept back: what is being tried has an error of its own
// to return, which says more. One at a time on a thread.
class QuietLibraries {
 public:
  QuietLibraries();
  // Logs what was kept back, unless Drop was called.
  ~QuietLibraries();
  QuietLibraries(const QuietLibraries&) = delete;
  QuietLibraries& operator=(const QuietLibraries&) = delete;

  void Drop();
};

}  // namespace palimpsest
