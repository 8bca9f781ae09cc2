#include "server/tokenizer/sentencepiece_oracle_test.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace palimpsest {
namespace {

void Check(const sentencepiece::util::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "SentencePiece: %s\n", status.ToString().c_str());
  std::abort();
}

class VectorIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit VectorIterator(const std::vector<std::string>& sentences) : sentences_(sentences) {}
  bool done() const override { return next_ >= sentences_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sentences_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& sentences_;
  size_t next_ = 0;
};

}  // namespace

struct SentencePieceOracle::Library {
  sentencepiece::SentencePieceProcessor processor;
};

std::string TrainWithSentencePiece(const std::vector<std::string>& sentences, const std::string& flags) {
  VectorIterator iterator(sentences);
  std::string model;
  Check(sentencepiece::SentencePieceTrainer::Train("--minloglevel=2 --num_threads=1 " + flags, &iterator, &model));
  return model;
}

SentencePieceOracle::SentencePieceOracle(const std::string& model_bytes) : library_(std::make_unique<Library>()) {
  Check(library_->processor.LoadFromSerializedProto(model_bytes));
}

SentencePieceOracle::~SentencePieceOracle() = default;

int32_t SentencePieceOracle::vocabulary() const { return library_->processor.GetPieceSize(); }

std::vector<int32_t> SentencePieceOracle::Encode(const std::string& text) const {
  std::vector<int> ids;
  Check(library_->processor.Encode(text, &ids));
  return {ids.begin(), ids.end()};
}

std::string SentencePieceOracle::Decode(const std::vector<int32_t>& ids) const {
  std::string text;
  Check(library_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text));
  return text;
}

}  // namespace palimpsest
