// The SentencePiece library behind plain types: its headers and Abseil's cannot be used in one translation unit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace palimpsest {

// Trains on `sentences` with the trainer's own command-line `flags` and returns the model file's bytes.
std::string TrainWithSentencePiece(const std::vector<std::string>& sentences, const std::string& flags);

class SentencePieceOracle {
 public:
  explicit SentencePieceOracle(const std::string& model_bytes);
  ~SentencePieceOracle();

  int32_t vocabulary() const;
  std::vector<int32_t> Encode(const std::string& text) const;
  std::string Decode(const std::vector<int32_t>& ids) const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;
};

}  // namespace palimpsest
