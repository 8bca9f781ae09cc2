// A file read through memory: pages come in when they are looked at.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace palimpsest {

// Movable; read-only. A file that becomes shorter while it is mapped would end the process when the bytes beyond its
// new end are looked at (SIGBUS). Here they read as zeros, and CheckUnchanged tells: whoever has read the bytes asks it
// before anything that was made of them is used.
class MappedFile {
 public:
  // As RegularFile::Open, and INVALID_ARGUMENT: longer than `max_bytes`.
  static absl::StatusOr<MappedFile> Open(const std::string& path, int64_t max_bytes);

  std::string_view bytes() const;
  // DATA_LOSS: the file was changed in place since it was opened, or the disk failed, so the bytes may be of no file
  // that there ever was.
  absl::Status CheckUnchanged() const;

 private:
  class Mapping;
  MappedFile(std::string path, RegularFile file);

  std::string path_;
  RegularFile file_;
  std::unique_ptr<Mapping, void (*)(Mapping*)> mapping_;  // null for an empty file
};

}  // namespace palimpsest
