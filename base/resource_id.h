// Ids that become parts of names such as sessions/{id}.
#pragma once

#include <string_view>

namespace palimpsest {

// 1 to 63 characters of [a-z0-9-], or with `dots` of [a-z0-9.-], the first a letter.
bool IsResourceId(std::string_view text, bool dots = false);

}  // namespace palimpsest
