#include "server/model/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/testing/temporary_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/testing/safetensors_writer.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kPages = 64, kPage = 4096, kBytes = kPages * kPage;

class MappedFileTest : public ::testing::Test {
 protected:
  std::string Make(const std::string& name) const {
    const std::string path = temporary_.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << std::string(kBytes, 'x');
    return path;
  }
  static int64_t CountX(std::string_view bytes) { return std::count(bytes.begin(), bytes.end(), 'x'); }

  const testing::TemporaryFolder temporary_;
};

TEST_F(MappedFileTest, ShowsTheBytes) {
  const absl::StatusOr<MappedFile> file = MappedFile::Open(Make("file"), kBytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(CountX(file->bytes()), kBytes);
  EXPECT_TRUE(file->CheckUnchanged().ok());
  EXPECT_THAT(std::string(MappedFile::Open(Make("file"), kBytes - 1).status().message()), HasSubstr("at most 262143"));
}

TEST_F(MappedFileTest, AFileThatIsCutShortIsAnErrorOfItsReader) {
  const std::string path = Make("file");
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path, kBytes);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(truncate(path.c_str(), 3 * kPage), 0);
  EXPECT_EQ(CountX(file->bytes()), 3 * kPage);  // the rest reads as zeros
  EXPECT_EQ(file->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(file->CheckUnchanged().message()),
              HasSubstr("file: changed while it was read: it had 262144 "));

  // Made long again and dated back: what was read was still not the file.
  const struct timespec before[2] = {{1, 0}, {1, 0}};
  const std::string other = Make("other");
  ASSERT_EQ(utimensat(AT_FDCWD, other.c_str(), before, 0), 0);
  const absl::StatusOr<MappedFile> restored = MappedFile::Open(other, kBytes);
  ASSERT_EQ(truncate(other.c_str(), 0), 0);
  EXPECT_EQ(CountX(restored->bytes()), 0);
  ASSERT_EQ(truncate(other.c_str(), kBytes), 0);
  ASSERT_EQ(utimensat(AT_FDCWD, other.c_str(), before, 0), 0);
  EXPECT_THAT(std::string(restored->CheckUnchanged().message()), HasSubstr("could not be read to its end"));
}

TEST_F(MappedFileTest, ManyReadersOfManyFiles) {
  const std::string cut = Make("cut"), kept = Make("kept");
  for (int round = 0; round < 10; ++round) {
    Make("cut");
    const absl::StatusOr<MappedFile> first = MappedFile::Open(cut, kBytes), second = MappedFile::Open(kept, kBytes);
    ASSERT_TRUE(first.ok() && second.ok());
    ASSERT_EQ(truncate(cut.c_str(), kPage), 0);
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; ++i) {
      readers.emplace_back([&] {
        EXPECT_EQ(CountX(first->bytes()), kPage);
        EXPECT_EQ(CountX(second->bytes()), kBytes);
      });
    }
    for (std::thread& reader : readers) reader.join();
    EXPECT_FALSE(first->CheckUnchanged().ok());
    EXPECT_TRUE(second->CheckUnchanged().ok());
  }
}

TEST_F(MappedFileTest, WeightsThatAreCutShortDoNotLoad) {
  const std::string path = temporary_.path() + "/model.safetensors";
  const testing::TensorToWrite tensor_to_write{
      .name = "a", .dtype = DType::kF32, .shape = {kBytes}, .bytes = std::string(4 * kBytes, '\0')};
  testing::WriteShards(temporary_.path(), {{tensor_to_write}}, 1);
  const absl::StatusOr<WeightFiles> files = WeightFiles::Open(temporary_.path());
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(files->CheckUnchanged().ok());
  std::filesystem::resize_file(path, kPage);
  const TensorView& tensor = files->tensors().at("a");
  EXPECT_EQ(std::count(tensor.data, tensor.data + tensor.bytes(), std::byte{0}), tensor.bytes());
  EXPECT_EQ(files->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
}

using MappedFileDeathTest = MappedFileTest;

TEST_F(MappedFileDeathTest, OtherBusErrorsStillEndTheProcess) {
  const std::string path = Make("file");
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path, kBytes);
  EXPECT_DEATH(
      {
        // A mapping that nobody guards.
        const int fd = open(path.c_str(), O_RDONLY);
        const auto* bytes = static_cast<const char*>(mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fd, 0));
        (void)!truncate(path.c_str(), 0);
        volatile char sink = bytes[0];
        (void)sink;
      },
      "");
}

}  // namespace
}  // namespace palimpsest
