// Takes the tensors that the parts of a model ask for, under the names that its architecture has for them.
#pragma once

#include <deque>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "server/model/architectures/architecture.h"
#include "server/model/checkpoint/tensor_table.h"
#include "server/model/loading/tensors_by_role.h"

namespace palimpsest {

// Not thread-safe. What it hands out lives as long as it and the table's tensors do.
class TensorTaker {
 public:
  TensorTaker(const TensorMap& tensors, TensorTable& table, const Architecture& architecture);

  // The tensor of this role and index. Null if there is none that fits; the table's Finish() then says so.
  const TensorView* Take(Role role, size_t index, const std::vector<int64_t>& shape);
  TensorsByRole Take(std::span<const TensorSpec> specs, size_t index);
  // Rows [begin, end) of a tensor, null of null.
  const TensorView* Slice(const TensorView* tensor, int64_t begin, int64_t end);

  // Under any name of the role, of any shape. Null: it is not there.
  const TensorView* Find(Role role, size_t index) const;
  const Architecture& architecture() const { return architecture_; }
  void Ignore(Role role, size_t index);
  void Fail(const std::string& message) { table_.Fail(message); }
  // Tells the table of tensors of which a part alone was asked for.
  void Finish();

 private:
  const TensorView* TakeRows(const std::string& name, Rows rows, const std::vector<int64_t>& shape);

  const TensorMap& tensors_;
  TensorTable& table_;
  const Architecture& architecture_;
  std::deque<TensorView> slices_;
  std::map<std::string, std::pair<int32_t, const TensorView*>> in_parts_;  // parts that were not taken yet
  std::map<std::string, const TensorView*> of_all_layers_;
};

}  // namespace palimpsest
