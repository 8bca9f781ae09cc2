// What an iteration cannot do without, from the model's sizes: metrics tell it beside the time that iterations took, so
// that time can be held against what the machine could do at best.
#pragma once

#include <cstdint>

#include "server/model/model.h"

namespace palimpsest {

class LeastWork {
 public:
  explicit LeastWork(const Model& model);

  struct Amount {
    int64_t bytes = 0;  // read or written: the weights once, each state once in and, unless it is written seldom, out
    int64_t flops = 0;  // a multiply-add counts two
  };
  // Of an iteration that takes in `rows` tokens of `sequences` sequences and makes logits for `logit_rows` of them.
  // Rather too little than too much: a table that rows are looked up in counts nothing, of a head that is cut into
  // clusters the first counts, and the arithmetic of an attention window counts nothing.
  Amount Of(int64_t rows, int64_t sequences, int64_t logit_rows) const;

 private:
  int64_t body_bytes_ = 0;  // weights of the layers
  int64_t head_bytes_ = 0;
  int64_t state_bytes_ = 0;
  int64_t row_flops_ = 0;
  int64_t logit_row_flops_ = 0;
};

}  // namespace palimpsest
