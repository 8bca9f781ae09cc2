#include "base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/errno_status.h"

namespace palimpsest {

absl::StatusOr<RegularFile> RegularFile::Open(const std::string& path) {
  // Not blocking: opening a named pipe would otherwise wait for a writer before we can see that it is no file.
  RegularFile file(path, open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (file.descriptor_ < 0) {
    // A socket cannot even be opened; the system says "No such device or address", which helps nobody.
    if (errno == ENXIO) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
    return ErrnoStatus(errno, path);
  }
  if (fstat(file.descriptor_, &file.opened_) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(file.opened_.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  return file;
}

RegularFile::RegularFile(RegularFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), opened_(other.opened_) {}

RegularFile& RegularFile::operator=(RegularFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(opened_, other.opened_);
  return *this;
}

RegularFile::~RegularFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status RegularFile::CheckUnchanged() const {
  struct stat now {};
  if (fstat(descriptor_, &now) != 0) return ErrnoStatus(errno, path_);
  if (now.st_size != opened_.st_size) {
    return absl::DataLossError(absl::StrCat(path_, ": changed while it was read: it had ", opened_.st_size,
                                            " bytes, now it has ", now.st_size, "; replace files by renaming"));
  }
  if (now.st_mtim.tv_sec != opened_.st_mtim.tv_sec || now.st_mtim.tv_nsec != opened_.st_mtim.tv_nsec) {
    return absl::DataLossError(absl::StrCat(path_, ": was written to while it was read; replace files by renaming"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  absl::StatusOr<RegularFile> file = RegularFile::Open(path);
  if (!file.ok()) return file.status();
  if (file->size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", file->size(), " bytes, at most ", max_bytes, " are read"));
  }
  std::string bytes(static_cast<size_t>(file->size()), '\0');
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t got = pread(file->descriptor(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat(path, ": at byte ", at, " of ", bytes.size()));
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(path, ": ends at byte ", at, ", but had ", bytes.size(),
                                              " bytes when it was opened; replace files by renaming"));
    }
    at += static_cast<size_t>(got);
  }
  return bytes;
}

absl::Status WriteFile(const std::string& path, std::string_view contents) {
  const std::string temporary = absl::StrCat(path, ".", getpid());
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (file < 0) return ErrnoStatus(errno, path);
  int error = 0;
  while (error == 0 && !contents.empty()) {
    const ssize_t written = write(file, contents.data(), contents.size());
    if (written >= 0) {
      contents.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  // Some file systems tell only now that there was no room.
  if (close(file) != 0 && error == 0) error = errno;
  if (error == 0 && rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return absl::OkStatus();
  unlink(temporary.c_str());
  return ErrnoStatus(error, path);
}

}  // namespace palimpsest
