// W3C Trace Context (https://www.w3.org/TR/trace-context/): how a call's log line joins the trace of its caller.
//
// The caller's metadata may hold `traceparent`, "00-{trace id}-{the caller's span id}-{flags}", and `tracestate`, which
// belongs to tracing systems and is not read here. A call is a span of the caller's trace, with an id of its own; the
// log line names all three. The answer's initial metadata holds `traceresponse`, "00-{trace id}-{the call's span
// id}-{flags}", so that a caller without tracing can find the line too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace palimpsest {

struct TraceContext {
  std::string trace_id;     // 32 hexadecimal digits
  std::string span_id;      // 16: this call's
  std::string parent_id;    // 16: the caller's span; empty where the trace begins here
  std::string trace_state;  // the caller's, or empty
  uint8_t flags = 0;        // 1: the caller may have recorded its span; 2: the trace id is random

  // The value of `traceresponse`; as a `traceparent`, it makes a call a child of this one.
  std::string ToString() const;
};

// A new span of the trace that the caller's metadata names. A `traceparent` that is missing, given twice or not valid
// begins a new trace, as the specification has it, and `tracestate` is then dropped; an invalid `tracestate` is dropped
// alone. Several `tracestate` are one list. Versions after 00 are read as far as 00 goes.
TraceContext ContinueTrace(const std::vector<absl::string_view>& traceparents,
                           const std::vector<absl::string_view>& tracestates);

}  // namespace palimpsest
