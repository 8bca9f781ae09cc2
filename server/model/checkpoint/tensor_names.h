// The names that writers of checkpoints give the same tensors, made one.
#pragma once

#include "server/model/checkpoint/safetensors.h"

namespace palimpsest {

// The tensors under the names of fla's classes, pointing to the same bytes:
// - without what wrappers put in front of all names ("module.", "_orig_mod.", a second "model."), and with "model."
//   where it is the inner model that was saved;
// - "model.embeddings.weight", where a file says embed_tokens, or has the matrix of a tied model as the head alone;
// - convolutions as [channels, 1, width], where a file has [channels, width];
// - without buffers that are no weights (frequencies of rotary embeddings).
// A name that is there already is never given to another tensor.
TensorMap WithKnownNames(const TensorMap& tensors, bool tied_embeddings);

}  // namespace palimpsest
