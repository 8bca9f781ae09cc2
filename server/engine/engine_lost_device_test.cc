// A device that is lost while it is at work: the emulator's, which can be lost at will.
#include <gtest/gtest.h>

#include <utility>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_device.h"
#include "server/engine/engine.h"
#include "server/engine/engine_testing.h"

namespace palimpsest {
namespace emulator {
void LoseDevice(bool lost);  // kernels/cuda/emulator/emulator.h, which is for kernels only
}

namespace testing {
namespace {

// Loses the device when it is told of its end.
class LosingSink : public RecordingSink {
 public:
  explicit LosingSink(const RecordingSink& other) : other_(other) {}
  void OnFinish(Finish finish) override {
    told_ = std::ssize(other_.ids());
    emulator::LoseDevice(true);
    RecordingSink::OnFinish(std::move(finish));
  }
  int64_t told() const { return told_; }

 private:
  const RecordingSink& other_;
  int64_t told_ = 0;
};

class EngineLostDevice : public SessionsTest {};

TEST_F(EngineLostDevice, TheBatchThatRunsIsLostAndWhatWasToldStays) {
  absl::StatusOr<std::unique_ptr<Device>> device = OpenCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  const std::unique_ptr<Engine> engine =
      StartEngine({.threads = 1, .slots = 3}, {}, LoadModel(TestSpec(), {.device = *std::move(device)}));
  for (const char* id : {"lost", "ends"}) NewSession(id);
  const auto lost = Submit(*engine, OnSession("lost", Generate(RandomTokens(5, 1), kEndless)));
  lost->WaitForTokens(1);
  const auto ends = std::make_shared<LosingSink>(*lost);
  EngineRequest request = OnSession("ends", Generate(RandomTokens(5, 2), 3));
  request.sink = ends;
  Submit(*engine, std::move(request));
  EXPECT_TRUE(ends->Wait().status.ok()) << ends->Wait().status;
  EXPECT_EQ(lost->Wait().status.code(), absl::StatusCode::kUnavailable);
  emulator::LoseDevice(false);  // the engine does not know, and would not trust it
  EXPECT_TRUE(lost->Wait().device_failed);
  EXPECT_EQ(lost->Wait().position, 0);
  EXPECT_EQ(lost->ids().size(), ends->told()) << "the batch at work then had not been waited for";
  EXPECT_EQ(store_.Get(kDefaultOwner, "ends", absl::Now())->position, 8);
  EXPECT_EQ(store_.Get(kDefaultOwner, "lost", absl::Now())->position, 0);
  EXPECT_EQ(store_.Get(kDefaultOwner, "lost", absl::Now())->condition, SessionCondition::kIdle);
  EXPECT_TRUE(engine->device_failed());
  request = OnSession("lost", Generate({1}, 1));
  request.sink = std::make_shared<RecordingSink>();
  EXPECT_EQ(engine->Submit(request).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace testing
}  // namespace palimpsest
