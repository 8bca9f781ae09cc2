#include "base/resource_id.h"

#include <string>

#include "gtest/gtest.h"

namespace palimpsest {
namespace {

TEST(ResourceId, LowerCaseDigitsAndDashesAfterALetter) {
  for (const char* text : {"a", "a1", "a-", "books-5m"}) EXPECT_TRUE(IsResourceId(text)) << text;
  for (const char* text : {"", "1a", "-a", "A", "aB", "a b", "a/b", "a_b", "\xC3\xA9", "a\xC3\xA9"}) {
    EXPECT_FALSE(IsResourceId(text)) << text;
    EXPECT_FALSE(IsResourceId(text, /*dots=*/true)) << text;
  }
}

TEST(ResourceId, DotsWhereTheyAreAllowed) {
  EXPECT_TRUE(IsResourceId("a.b", /*dots=*/true));
  EXPECT_FALSE(IsResourceId("a.b"));
  EXPECT_FALSE(IsResourceId(".a", /*dots=*/true));
}

TEST(ResourceId, AtMost63Characters) {
  EXPECT_TRUE(IsResourceId(std::string(63, 'a')));
  EXPECT_FALSE(IsResourceId(std::string(64, 'a')));
}

}  // namespace
}  // namespace palimpsest
