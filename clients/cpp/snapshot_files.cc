// The conveniences of Client that put snapshots into strings and files.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/cpp/client.h"

namespace palimpsest::client {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

absl::Status FileError(absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(what, " ", path));
}

}  // namespace

absl::StatusOr<std::string> Client::DownloadSnapshotBytes(const std::string& name, const CallOptions& options) {
  std::string bytes;
  const auto append = [&bytes](std::string_view piece) {
    bytes.append(piece);
    return absl::OkStatus();
  };
  const absl::StatusOr<v1::Snapshot> snapshot = DownloadSnapshot(name, append, options);
  if (!snapshot.ok()) return snapshot.status();
  return bytes;
}

absl::StatusOr<v1::Snapshot> Client::DownloadSnapshotFile(const std::string& name, const std::string& path,
                                                          const CallOptions& options) {
  const std::string partial = absl::StrCat(path, ".partial");
  File file(std::fopen(partial.c_str(), "wb"), &std::fclose);
  if (file == nullptr) return FileError("cannot write", partial);
  const auto write = [&](std::string_view piece) {
    if (std::fwrite(piece.data(), 1, piece.size(), file.get()) != piece.size()) {
      return FileError("cannot write", partial);
    }
    return absl::OkStatus();
  };
  absl::StatusOr<v1::Snapshot> snapshot = DownloadSnapshot(name, write, options);
  if (snapshot.ok() && std::fclose(file.release()) != 0) snapshot = FileError("cannot write", partial);
  if (snapshot.ok() && std::rename(partial.c_str(), path.c_str()) != 0) snapshot = FileError("cannot write", path);
  if (!snapshot.ok()) std::remove(partial.c_str());
  return snapshot;
}

absl::StatusOr<v1::Snapshot> Client::UploadSnapshotBytes(const UploadSnapshotOptions& what, std::string_view bytes,
                                                         const CallOptions& options) {
  return UploadSnapshot(
      what, [&bytes]() -> absl::StatusOr<std::string> { return std::string(std::exchange(bytes, {})); }, options);
}

absl::StatusOr<v1::Snapshot> Client::UploadSnapshotFile(const UploadSnapshotOptions& what, const std::string& path,
                                                        const CallOptions& options) {
  const File file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return FileError("cannot read", path);
  const auto read = [&]() -> absl::StatusOr<std::string> {
    std::string piece(1 << 20, '\0');
    piece.resize(std::fread(piece.data(), 1, piece.size(), file.get()));
    if (std::ferror(file.get())) return FileError("cannot read", path);
    return piece;
  };
  return UploadSnapshot(what, read, options);
}

}  // namespace palimpsest::client
