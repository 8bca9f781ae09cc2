// A file read through memory: pages come in when they are looked at.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace palimpsest {

// Movable; read-only. The file must not be made shorter while it is mapped (the system answers reads beyond the new end
// with SIGBUS): replace checkpoint files by renaming, do not write over them.
class MappedFile {
 public:
  // NOT_FOUND: no such file.  INVALID_ARGUMENT: not a regular file, or longer than `max_bytes`.  PERMISSION_DENIED, or
  // UNAVAILABLE: the system does not let us read it.
  static absl::StatusOr<MappedFile> Open(const std::string& path, int64_t max_bytes);

  std::string_view bytes() const { return bytes_ == nullptr ? std::string_view() : *bytes_; }

 private:
  struct Unmap {
    void operator()(std::string_view* bytes) const;
  };
  std::unique_ptr<std::string_view, Unmap> bytes_;  // null for an empty file
};

// A small file as a string: configuration and indexes. Statuses as MappedFile::Open.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes);

}  // namespace palimpsest
