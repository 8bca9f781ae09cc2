// Text from outside, made fit for a message: quoted, cut where it is long, and with what is not printable escaped.
#pragma once

#include <string>
#include <string_view>

namespace palimpsest {

// 'text', for names in files: at most 80 bytes of it.
std::string Quoted(std::string_view text);

// "text", for values of requests: at most 64 bytes of it.
std::string DoubleQuoted(std::string_view text);

// "text", where text is language: as DoubleQuoted, but characters beyond ASCII stay as they are.
std::string DoubleQuotedUtf8(std::string_view text);

}  // namespace palimpsest
