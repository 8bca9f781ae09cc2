// Files that are written whole or not at all.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace palimpsest::client {

// What is written goes to a file beside `path`, which takes that name in Commit, so that a full disk or a lost
// connection never leaves half a file there, nor takes away the one that stood there. Follows symbolic links. What is
// no file, such as /dev/stdout or a pipe, is written to as it is. All errors name the path.
class WholeFile {
 public:
  // `mode`: the permissions, less the umask. Those of states are for their owner alone, since a state holds text.
  static absl::StatusOr<WholeFile> Create(const std::string& path, mode_t mode = 0600);
  WholeFile(WholeFile&& other) noexcept;
  WholeFile& operator=(WholeFile&&) = delete;
  // Without Commit, nothing has happened.
  ~WholeFile();

  absl::Status Write(std::string_view bytes);
  // Makes sure that the bytes are on the disk, then gives the file its name. Once.
  absl::Status Commit();

 private:
  WholeFile(std::string path, std::string real, std::string partial, int fd)
      : path_(std::move(path)), real_(std::move(real)), partial_(std::move(partial)), fd_(fd) {}
  absl::Status Error() const;

  const std::string path_;
  const std::string real_;  // where its symbolic links lead
  std::string partial_;     // the name until Commit; empty: written in place, or done
  int fd_;                  // -1: closed
};

}  // namespace palimpsest::client
