#include "base/file.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/errno_status.h"
#include "base/testing/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  std::string Make(const std::string& name, const std::string& contents) const {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path, std::ios::binary) << contents;
    return path;
  }

  const testing::TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
};

TEST_F(FileTest, ReadsAllBytes) {
  const std::string bytes("a\0b\xff\n", 5);
  EXPECT_EQ(*ReadFile(Make("some", bytes), 5), bytes);
  EXPECT_EQ(*ReadFile(Make("empty", ""), 0), "");
  std::filesystem::create_symlink("some", folder_ + "/link");
  EXPECT_EQ(*ReadFile(folder_ + "/link", 100), bytes);
}

TEST_F(FileTest, ALongFileIsRefusedWithBothNumbers) {
  const absl::Status status = ReadFile(Make("long", "123456"), 5).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("long: has 6 bytes, at most 5 are read"));
}

TEST_F(FileTest, WhatIsNoFileIsRefusedAtOnce) {
  ASSERT_EQ(mkfifo((folder_ + "/pipe").c_str(), 0600), 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (folder_ + "/socket").c_str(), sizeof(address.sun_path) - 1);
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  for (const std::string& path : {folder_, folder_ + "/pipe", folder_ + "/socket", std::string("/dev/null")}) {
    const absl::Status status = ReadFile(path, 1 << 20).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(status.message(), path + ": not a regular file");
  }
  close(listener);
}

TEST_F(FileTest, ErrorsOfAPathDoNotSayRetry) {
  std::filesystem::create_symlink("loop", folder_ + "/loop");
  Make("file", "x");
  const struct {
    std::string path;
    absl::StatusCode code;
    const char* words;
  } rows[] = {
      {folder_ + "/nothing", absl::StatusCode::kNotFound, "No such file"},
      {folder_ + "/loop", absl::StatusCode::kInvalidArgument, "Too many levels of symbolic links"},
      {folder_ + "/loop/x", absl::StatusCode::kInvalidArgument, "Too many levels of symbolic links"},
      {folder_ + "/file/x", absl::StatusCode::kNotFound, "Not a directory"},
      {folder_ + "/" + std::string(300, 'n'), absl::StatusCode::kInvalidArgument, "File name too long"},
  };
  for (const auto& row : rows) {
    const absl::Status status = ReadFile(row.path, 100).status();
    EXPECT_EQ(status.code(), row.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(row.words));
  }
  EXPECT_EQ(ErrnoCode(EACCES), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrnoCode(EIO), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ErrnoCode(ENOSPC), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(std::make_error_code(std::errc::too_many_symbolic_link_levels), "x").code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FileTest, AChangeIsSeen) {
  const std::string path = Make("changing", "0123456789");
  absl::StatusOr<RegularFile> file = RegularFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->CheckUnchanged().ok());
  std::filesystem::rename(Make("another", "?"), path);  // what is open stays what it was
  EXPECT_TRUE(file->CheckUnchanged().ok());
  ASSERT_EQ(truncate(path.c_str(), 0), 0);
  EXPECT_TRUE(file->CheckUnchanged().ok());

  absl::StatusOr<RegularFile> cut = RegularFile::Open(Make("cut", "0123456789"));
  ASSERT_EQ(truncate((folder_ + "/cut").c_str(), 4), 0);
  EXPECT_EQ(cut->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(cut->CheckUnchanged().message()), HasSubstr("it had 10 bytes, now it has 4"));

  absl::StatusOr<RegularFile> written = RegularFile::Open(Make("written", "0123456789"));
  const timespec long_ago[2] = {{1, 0}, {1, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, (folder_ + "/written").c_str(), long_ago, 0), 0);
  EXPECT_EQ(written->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
}

TEST_F(FileTest, WritesWholeOrNotAtAll) {
  const std::string path = folder_ + "/port";
  ASSERT_TRUE(WriteFile(path, "1\n").ok());
  ASSERT_TRUE(WriteFile(path, "50051\n").ok());
  EXPECT_EQ(*ReadFile(path, 100), "50051\n");

  EXPECT_EQ(WriteFile(folder_ + "/no/port", "1").code(), absl::StatusCode::kNotFound);
  std::filesystem::create_directory(folder_ + "/folder");
  EXPECT_FALSE(WriteFile(folder_ + "/folder", "1").ok());
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++entries;
  EXPECT_EQ(entries, 2);  // nothing is left behind
}

TEST_F(FileTest, AFullDiskIsAnErrorAndLeavesNothing) {
  // Every write to it fails as one to a full disk does.
  const std::string path = folder_ + "/port";
  std::filesystem::create_symlink("/dev/full", path + "." + std::to_string(getpid()));
  EXPECT_FALSE(WriteFile(path, "1").ok());  // nor does it follow a link that somebody put there
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace palimpsest
