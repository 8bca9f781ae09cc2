// config.json, and behind a zero byte generation_config.json: whatever is accepted describes a state that can be laid
// out.
#include "server/model/config.h"

#include "base/check.h"
#include "server/model/state_layout.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {

void Run(std::string_view input) {
  Input in(input);
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(in.Text());
  if (!config.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(config.status()));
    return;
  }
  if (!in.empty()) {
    const absl::Status status = config->AddGenerationConfig(in.Rest());
    PALIMPSEST_CHECK(status.ok() || absl::IsInvalidArgument(status));
  }
  for (const int32_t id : config->eos_tokens) PALIMPSEST_CHECK(id >= 0 && id < config->vocabulary);
  PALIMPSEST_CHECK(config->bos_token >= -1 && config->bos_token < config->vocabulary);
  PALIMPSEST_CHECK(config->max_context() >= 0);
  for (int32_t i = 0; i < config->clusters(); ++i) {
    PALIMPSEST_CHECK(config->cluster_begin(i) < config->cluster_end(i));
    if (config->embedding.adaptive) PALIMPSEST_CHECK(config->cluster_width(i) > 0);
  }
  PALIMPSEST_CHECK(!config->Canonical().empty());
  for (const DType fast_weights : {DType::kF32, DType::kBF16}) {
    int64_t end = 0;
    const StateLayout layout = StateLayout::FromConfig(*config, fast_weights);
    for (const StatePieceSpec& piece : layout.pieces()) {
      PALIMPSEST_CHECK(piece.offset >= end && piece.offset % 64 == 0 && piece.bytes > 0);
      end = piece.offset + piece.bytes;
    }
    PALIMPSEST_CHECK(layout.bytes() >= end && layout.bytes() % 64 == 0);
  }
}

}  // namespace palimpsest::fuzz
