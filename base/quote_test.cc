#include "base/quote.h"

#include <string>

#include "gtest/gtest.h"

namespace palimpsest {
namespace {

TEST(Quote, WhatIsNotPrintableIsEscaped) {
  EXPECT_EQ(Quoted("a\n\xFF'"), "'a\\n\\xff\\''");
  EXPECT_EQ(DoubleQuoted("plain"), "\"plain\"");
  EXPECT_EQ(DoubleQuoted("a\n\xFF\""), "\"a\\n\\xff\\\"\"");
  EXPECT_EQ(DoubleQuotedUtf8("\xC3\xA9\n"), "\"\xC3\xA9\\n\"");
}

TEST(Quote, WhatIsLongIsCut) {
  EXPECT_EQ(Quoted(std::string(80, 'x')), "'" + std::string(80, 'x') + "'");
  EXPECT_EQ(Quoted(std::string(81, 'x')), "'" + std::string(80, 'x') + "...'");
  EXPECT_EQ(DoubleQuoted(std::string(64, 'x')), "\"" + std::string(64, 'x') + "\"");
  EXPECT_EQ(DoubleQuoted(std::string(1000, 'x')), "\"" + std::string(64, 'x') + "...\"");
  EXPECT_EQ(DoubleQuotedUtf8(std::string(65, 'x')), "\"" + std::string(64, 'x') + "...\"");
}

}  // namespace
}  // namespace palimpsest
