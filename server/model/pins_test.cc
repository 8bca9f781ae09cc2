// What may not change by accident: who knows a model's sessions and snapshots by its fingerprint and its layout, and
// what its state is after some tokens, bit for bit. The values are in tests/golden/pins.txt, a line for each model; a
// line that does not hold is printed as it would have to be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/common/simd.h"
#include "server/model/loading/fingerprint.h"
#include "server/model/model.h"
#include "server/model/testing/model_runner.h"

namespace palimpsest {
namespace {

const char kSource[] = PALIMPSEST_SOURCE_DIR;

std::vector<std::string> Folders() {
  std::vector<std::string> folders = {"checkpoints/books-5m"};
  for (const char* const of : {"tests/golden", "tests/golden_paper"}) {
    for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat(kSource, "/", of))) {
      if (entry.is_directory()) folders.push_back(absl::StrCat(of, "/", entry.path().filename().string()));
    }
  }
  std::ranges::sort(folders);
  return folders;
}

// The lines of the file, by the folder that each begins with.
std::map<std::string, std::string> Pins() {
  std::ifstream file(absl::StrCat(kSource, "/tests/golden/pins.txt"));
  std::map<std::string, std::string> pins;
  for (std::string line; std::getline(file, line);) pins[line.substr(0, line.find(' '))] = line;
  return pins;
}

// Of a state after 200 tokens, in chunks, in pieces that are none, and in steps.
std::string DigestOfState(const Model& model) {
  std::vector<int32_t> tokens(200);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>((i * i * 31 + i * 17 + 5) % static_cast<size_t>(model.config().vocabulary));
  }
  if (model.config().max_context() > 0) {
    tokens.resize(std::min(tokens.size(), static_cast<size_t>(model.config().max_context() - 1)));
  }
  testing::ModelRunner runner(model, 1);
  size_t at = 0;
  for (const size_t length : {1, 64, 3, 70, 1, 1, 200}) {
    const size_t size = std::min(length, tokens.size() - at);
    if (size == 0) break;
    const testing::ModelRunner::Piece piece{.tokens = std::span(tokens).subspan(at, size),
                                            .first_position = static_cast<int64_t>(at)};
    runner.Forward({&piece, 1});
    at += size;
  }
  const std::vector<std::byte> state = runner.State(0);
  const Sha256Digest digest = Sha256Of({reinterpret_cast<const char*>(state.data()), state.size()});
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), 8});
}

class PinsTest : public ::testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Models, PinsTest, ::testing::ValuesIn(Folders()), [](const auto& info) {
  std::string name = info.param;
  std::ranges::replace_if(
      name, [](char c) { return c == '/' || c == '-'; }, '_');
  return name;
});

TEST_P(PinsTest, Hold) {
  const absl::StatusOr<std::unique_ptr<Model>> model =
      Model::Load(absl::StrCat(kSource, "/", GetParam()), {.math = ModelOptions::Math::kF32});
  ASSERT_TRUE(model.ok()) << model.status();
  const StateLayout& layout = (*model)->layout();
  const StateLayout halves = StateLayout::FromConfig((*model)->config(), DType::kBF16);
  std::string line = absl::StrFormat("%s %s f32 %016x %d bf16 %016x %d", GetParam(), (*model)->fingerprint(),
                                     layout.hash(), layout.bytes(), halves.hash(), halves.bytes());
  const std::string best = SimdTargetName();
  for (const char* const target : {"AVX2", "AVX3"}) {
    if (!UseSimdTarget(target)) continue;
    absl::StrAppend(&line, " ", target, " ", DigestOfState(**model));
  }
  UseSimdTarget(best);
  const std::string pinned = Pins()[GetParam()];
  // A processor without the last target says less.
  EXPECT_EQ(line, pinned.substr(0, line.size())) << "pins.txt would have to say:\n" << line;
  EXPECT_THAT(line, ::testing::HasSubstr(" AVX2 ")) << "nothing was run";
}

}  // namespace
}  // namespace palimpsest
