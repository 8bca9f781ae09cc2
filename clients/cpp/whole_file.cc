#include "clients/cpp/whole_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"

namespace palimpsest::client {

absl::StatusOr<WholeFile> WholeFile::Create(const std::string& path, mode_t mode) {
  char resolved[PATH_MAX];
  const std::string real = realpath(path.c_str(), resolved) != nullptr ? resolved : path;
  struct stat info;
  const bool in_place = stat(real.c_str(), &info) == 0 && !S_ISREG(info.st_mode);
  absl::BitGen gen;
  const std::string partial =
      in_place ? "" : absl::StrCat(real, ".", absl::Hex(absl::Uniform<uint64_t>(gen), absl::kZeroPad16), ".partial");
  const int fd = in_place ? open(real.c_str(), O_WRONLY | O_CLOEXEC)
                          : open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  WholeFile file(path, real, fd < 0 ? "" : partial, fd);
  if (fd < 0) return file.Error();
  return file;
}

WholeFile::WholeFile(WholeFile&& other) noexcept
    : path_(other.path_),
      real_(other.real_),
      partial_(std::exchange(other.partial_, "")),
      fd_(std::exchange(other.fd_, -1)) {}

WholeFile::~WholeFile() {
  if (fd_ >= 0) close(fd_);
  if (!partial_.empty()) unlink(partial_.c_str());
}

absl::Status WholeFile::Write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(fd_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Error();
    bytes.remove_prefix(count);
  }
  return absl::OkStatus();
}

absl::Status WholeFile::Commit() {
  if (!partial_.empty() && fsync(fd_) != 0) return Error();
  if (close(std::exchange(fd_, -1)) != 0) return Error();
  if (partial_.empty()) return absl::OkStatus();
  if (std::rename(partial_.c_str(), real_.c_str()) != 0) return Error();
  partial_.clear();
  return absl::OkStatus();
}

absl::Status WholeFile::Error() const { return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_)); }

}  // namespace palimpsest::client
