// The tensors of a part of a model, by what they are for.
#pragma once

#include <array>
#include <cstddef>

#include "base/check.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/tensor_roles.h"

namespace palimpsest {

// Points to tensors that somebody else keeps.
class TensorsByRole {
 public:
  // Null: the part did not ask for it.
  const TensorView* Find(Role role) const { return tensors_[static_cast<size_t>(role)]; }
  const TensorView& operator[](Role role) const {
    PALIMPSEST_CHECK(Find(role) != nullptr);
    return *Find(role);
  }
  void Put(Role role, const TensorView* tensor) { tensors_[static_cast<size_t>(role)] = tensor; }

 private:
  std::array<const TensorView*, static_cast<size_t>(Role::kIgnored)> tensors_ = {};
};

}  // namespace palimpsest
