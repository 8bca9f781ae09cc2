// Writes the random checkpoint that the Python client is tested with into the folder it is given.

#include <iostream>

#include "server/model/testing/random_checkpoint.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_random_checkpoint FOLDER\n";
    return 2;
  }
  palimpsest::testing::WriteRandomCheckpoint(argv[1], {});
}
