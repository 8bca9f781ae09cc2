// What one caller may ask for. Each limit is a flag of the server, and what is over one is refused with its name.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace palimpsest {

struct Limits {
  // Bytes of one message received. An inline state must fit; an upload comes in pieces and need not.
  int64_t max_message_bytes = int64_t{64} << 20;
  // Tokens of one prompt, and bytes of its text (checked first: turning text into tokens is work too).
  int64_t max_prompt_tokens = 262144;
  int64_t max_prompt_bytes = int64_t{4} << 20;
  // Tokens that one request may generate, and how many it gets when it does not say.
  int64_t max_tokens = 65536;
  int64_t default_max_tokens = 256;
  // Tokens and alternatives in one answer of Score: about 32 bytes each.
  int64_t max_scored_values = int64_t{1} << 20;
  int32_t max_stop_strings = 16;
  // Calls at once on one connection. More wait at the client.
  int32_t max_streams_per_connection = 1024;
  // Snapshots being uploaded or downloaded at once. Each holds the bytes of one state.
  int32_t max_transfers = 32;
  // Models loaded at once.
  int32_t max_models = 8;
  // Memory for prompts, and for answers that are made and not yet read, all connections together; one connection may
  // have half of it. 0: what the memory plan gives.
  int64_t max_reply_bytes = 0;
  // How long a peer may do nothing while it is its turn to read or to send. What is longer ends the call.
  absl::Duration max_stall = absl::Seconds(60);
  // Memory that gRPC may use for messages on their way, all connections together. 0: what the memory plan gives.
  int64_t max_rpc_memory_bytes = 0;
  // Request ids of creating calls that are remembered, for ten minutes each. When all are in use, new ones are refused.
  int64_t max_request_ids = 65536;
  // Bytes of them and their answers. 0: what the memory plan gives.
  int64_t max_request_id_bytes = 0;
};

}  // namespace palimpsest
