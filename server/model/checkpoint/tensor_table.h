// Takes the tensors of a checkpoint by name and shape, and explains what does not fit.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/model/checkpoint/safetensors.h"

namespace palimpsest {

// Not thread-safe. `tensors` must outlive this and what it hands out.
class TensorTable {
 public:
  // `where` names the checkpoint in messages.
  TensorTable(const TensorMap& tensors, std::string where);

  // The tensor, or null when it is missing or of another shape or an integer type; Finish() then says so. Each tensor
  // is taken once.
  const TensorView* Take(const std::string& name, std::vector<int64_t> shape);
  // As Take, for a tensor that is not used: it is neither unknown nor handed out.
  void Ignore(const std::string& name) { ignored_.emplace(name, nullptr); }

  // What was taken, by name.
  const std::map<std::string, const TensorView*>& taken() const { return taken_; }

  // Keeps the message if it is the first.
  void Fail(const std::string& message);

  // OK if all that was asked for is there and nothing else is. INVALID_ARGUMENT names the tensor: wrong shape (with
  // both), a type that is no weight type, missing (with the unknown tensor whose name is nearest), or unknown (with the
  // nearest expected name).
  absl::Status Finish() const;

 private:
  std::vector<std::string> Unknown() const;

  const TensorMap& tensors_;
  const std::string where_;
  std::map<std::string, const TensorView*> taken_;
  std::map<std::string, const TensorView*> ignored_;
  std::string missing_;  // first missing name
  std::string missing_shape_;
  absl::Status status_;
};

}  // namespace palimpsest
