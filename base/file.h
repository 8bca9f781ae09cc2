// Files of an operator: whatever a path leads to, the answer comes at once and is a status.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace palimpsest {

// A regular file, open for reading. Movable; closes itself.
class RegularFile {
 public:
  // INVALID_ARGUMENT: a folder, a pipe, a device or a socket (a pipe would otherwise block until somebody writes), or a
  // loop of symbolic links. NOT_FOUND, PERMISSION_DENIED, and whatever else ErrnoStatus makes of what the system says.
  static absl::StatusOr<RegularFile> Open(const std::string& path);
  RegularFile(RegularFile&& other) noexcept;
  RegularFile& operator=(RegularFile&& other) noexcept;
  ~RegularFile();

  int descriptor() const { return descriptor_; }
  // Bytes, when it was opened.
  int64_t size() const { return opened_.st_size; }

  // DATA_LOSS: the file has another length, or was written to, since it was opened.
  absl::Status CheckUnchanged() const;

 private:
  RegularFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;  // -1: moved from
  struct stat opened_ {};
};

// All bytes of a regular file. As RegularFile::Open, and INVALID_ARGUMENT: longer than `max_bytes`. DATA_LOSS: it
// became shorter while it was read, or the disk failed.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);

// Makes the file, or replaces it, whole or not at all: who reads it never sees half, and when it fails nothing is left
// behind. RESOURCE_EXHAUSTED: the disk is full.
absl::Status WriteFile(const std::string& path, std::string_view contents);

}  // namespace palimpsest
