#include "server/model/architectures/common_keys.h"

#include <nlohmann/json.hpp>

namespace palimpsest {
namespace {

// Nothing of the model, whatever they say.
constexpr const char* kHarmless[] = {
    // Which code made or runs it, and in which type.
    "_name_or_path", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version",
    "_attn_implementation_autoset", "attn_mode", "torchscript", "use_bfloat16", "return_dict", "output_attentions",
    "output_hidden_states", "use_cache", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy",
    "chunk_size_feed_forward", "tf_legacy_loss", "is_decoder", "tokenizer_class", "prefix",
    // Only training looks at them.
    "initializer_range", "use_l2warp", "gradient_checkpointing", "finetuning_task", "task_specific_params",
    "problem_type", "id2label", "label2id",
    // The state has no length, so neither has the text.
    "max_position_embeddings",
    // Where the norms' weights are in old files; the table of names finds them by name.
    "norm_first",
    // Token ids that generation does not use.
    "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id",
    // How to sample, which is the client's to choose.
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens"};

// What trainers note of themselves.
constexpr const char* kHarmlessPrefixes[] = {"unsloth_"};

constexpr const char* kNoEncoder = "a decoder alone is run";

}  // namespace

void AcceptCommonKeys(ConfigKeys& keys) {
  keys.Accept("model_type");
  for (const char* const key : kHarmless) keys.Accept(key);
  for (const char* const prefix : kHarmlessPrefixes) keys.AcceptPrefix(prefix);
  // These could change the model.
  keys.AcceptOnly("is_encoder_decoder", false, kNoEncoder);
  keys.AcceptOnly("add_cross_attention", false, kNoEncoder);
  keys.AcceptOnly("cross_attention_hidden_size", nullptr, kNoEncoder);
  keys.AcceptOnly("tie_encoder_decoder", false, kNoEncoder);
  keys.AcceptOnly("pruned_heads", nlohmann::json::object(), "all heads of a layer are read");
  keys.AcceptOnly("rope_scaling", nullptr, "no layer rotates its keys");
  keys.AcceptOnly("quantization_config", nullptr, "only f32, bf16 and f16 weights are read");
}

}  // namespace palimpsest
