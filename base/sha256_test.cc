#include "base/sha256.h"

#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace palimpsest {
namespace {

std::string Hex(const Sha256Digest& digest) { return absl::BytesToHexString(BytesOf(digest)); }

// The examples of FIPS 180-2, appendix B, and the digest of nothing.
TEST(Sha256, TheStandardsExamples) {
  EXPECT_EQ(Hex(Sha256Of("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Hex(Sha256Of("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Hex(Sha256Of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Hex(Sha256Of(std::string(1'000'000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesDoNotMatter) {
  const std::string text(1000, 'x');
  for (const size_t cut : {0, 1, 63, 64, 65, 1000}) {
    Sha256 hash;
    hash.Add(text.substr(0, cut));
    Sha256 moved = std::move(hash);
    moved.Add(text.data() + cut, static_cast<int64_t>(text.size() - cut));
    EXPECT_EQ(moved.Finish(), Sha256Of(text)) << cut;
  }
}

}  // namespace
}  // namespace palimpsest
