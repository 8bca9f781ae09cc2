// The conveniences of Client that put snapshots into strings and files.
#include <cerrno>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "clients/cpp/attempts.h"
#include "clients/cpp/client.h"
#include "clients/cpp/whole_file.h"

namespace palimpsest::client {
namespace {

absl::Status ReadError(const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
}

// Uploads from a source that can be opened once more, so that a refusal can be answered by another attempt.
absl::StatusOr<v1::Snapshot> UploadAgain(Client& client, const UploadSnapshotOptions& what, const CallOptions& options,
                                         const std::function<absl::StatusOr<ByteSource>()>& open) {
  const Peer nobody;
  Attempts attempts(nobody, options, "");
  while (true) {
    PALIMPSEST_ASSIGN_OR_RETURN(const ByteSource source, open());
    CallOptions once = options;
    once.timeout = attempts.TimeLeft();
    attempts.Next();
    absl::StatusOr<v1::Snapshot> snapshot = client.UploadSnapshot(what, source, once);
    absl::Status status = snapshot.status();
    if (status.ok() || !attempts.WaitToRetry(status)) return status.ok() ? snapshot : status;
  }
}

}  // namespace

absl::StatusOr<std::string> Client::DownloadSnapshotBytes(const std::string& name, const CallOptions& options) {
  std::string bytes;
  const auto append = [&bytes](std::string_view piece) {
    bytes.append(piece);
    return absl::OkStatus();
  };
  PALIMPSEST_RETURN_IF_ERROR(DownloadSnapshot(name, append, options).status());
  return bytes;
}

absl::StatusOr<v1::Snapshot> Client::DownloadSnapshotFile(const std::string& name, const std::string& path,
                                                          const CallOptions& options) {
  PALIMPSEST_ASSIGN_OR_RETURN(WholeFile file, WholeFile::Create(path));
  absl::StatusOr<v1::Snapshot> snapshot = DownloadSnapshot(
      name, [&file](std::string_view piece) { return file.Write(piece); }, options);
  if (!snapshot.ok()) return snapshot;
  PALIMPSEST_RETURN_IF_ERROR(file.Commit());
  return snapshot;
}

absl::StatusOr<v1::Snapshot> Client::UploadSnapshotBytes(const UploadSnapshotOptions& what, std::string_view bytes,
                                                         const CallOptions& options) {
  return UploadAgain(*this, what, options, [bytes]() -> absl::StatusOr<ByteSource> {
    return [left = bytes]() mutable { return std::string(std::exchange(left, {})); };
  });
}

absl::StatusOr<v1::Snapshot> Client::UploadSnapshotFile(const UploadSnapshotOptions& what, const std::string& path,
                                                        const CallOptions& options) {
  return UploadAgain(*this, what, options, [&path]() -> absl::StatusOr<ByteSource> {
    const std::shared_ptr<std::FILE> file(std::fopen(path.c_str(), "rbe"),
                                          [](std::FILE* opened) { opened == nullptr ? 0 : std::fclose(opened); });
    if (file == nullptr) return ReadError(path);
    return [file, &path]() -> absl::StatusOr<std::string> {
      std::string piece(1 << 20, '\0');
      piece.resize(std::fread(piece.data(), 1, piece.size(), file.get()));
      if (std::ferror(file.get())) return ReadError(path);
      return piece;
    };
  });
}

}  // namespace palimpsest::client
