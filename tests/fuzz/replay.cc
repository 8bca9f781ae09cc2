// Feeds a target the files that are named, and those in the folders that are named, in the order of their names. Each
// is told before it is fed: the last one told is the one that ended the process.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz.h"

int main(int argc, char** argv) {
  namespace fs = std::filesystem;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    if (!fs::is_directory(argv[i])) {
      files.emplace_back(argv[i]);
      continue;
    }
    for (const fs::directory_entry& entry : fs::directory_iterator(argv[i])) files.push_back(entry.path());
  }
  if (files.empty()) {
    std::fprintf(stderr, "usage: %s FILE|FOLDER...; there is no file to feed\n", argv[0]);
    return 2;
  }
  std::sort(files.begin(), files.end());
  for (const std::string& path : files) {
    std::ifstream file(path, std::ios::binary);
    const std::string input(std::istreambuf_iterator<char>(file), {});
    if (!file) {
      std::fprintf(stderr, "%s cannot be read\n", path.c_str());
      return 1;
    }
    std::printf("%s: %zu bytes\n", path.c_str(), input.size());
    std::fflush(stdout);
    palimpsest::fuzz::Run(input);
  }
  std::printf("%zu inputs\n", files.size());
  return 0;
}
