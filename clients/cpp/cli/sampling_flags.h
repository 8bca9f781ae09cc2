// The flags that say how text is generated, shared by `generate` and `chat`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cpp/cli/args.h"
#include "palimpsest/v1/generation.pb.h"

namespace palimpsest::cli {

struct SamplingFlags {
  std::optional<int64_t> max_tokens;
  std::optional<double> temperature;
  int64_t top_k = 0;
  std::optional<double> top_p;
  double min_p = 0;
  std::optional<double> repetition_penalty;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::vector<std::string> logit_bias;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_ids;
  bool ignore_end_of_text = false;

  void Add(FlagSet& flags);
  // Sets `sampling` and `stop` of the request. A usage error where a flag's form is wrong; the server judges values.
  absl::Status Fill(v1::GenerateRequest& request) const;
};

// `id` as the wire's int32; a usage error that names the flag if it does not fit.
absl::StatusOr<int32_t> ToInt32(absl::string_view flag, int64_t value);

}  // namespace palimpsest::cli
