// The memory that the emulator gives out, and what may be touched by whom.
//
// A device's memory is apart: its pages can be read and written only while something runs on a device (kernels, copies,
// products), so that host code which follows a device's pointer dies there and then. What a kernel is given is looked
// through the other way: a word that is the address of memory which a device cannot see ends the program with a message
// (RequireOnDevice). Both hold for the process: a host thread that reads while another's kernel runs is not caught.
#pragma once

#include <cstddef>

namespace palimpsest::emulator {

inline constexpr size_t kDeviceBytes = size_t{2} << 30;

// NaN in every word at first: nobody may count on zeros. Null: there is not enough.
void* AllocateOnDevice(size_t bytes);
void* AllocatePinned(size_t bytes);
// False: not the beginning of such a piece.
bool FreeOnDevice(void* memory);
bool FreePinned(void* memory);
// Shows the device memory of the host's. False: that was shown before.
bool Register(void* memory, size_t bytes);

size_t FreeDeviceBytes();
bool IsPinned(const void* memory);    // or registered
bool IsOnDevice(const void* memory);  // in a piece from AllocateOnDevice, or one past its end

// Device memory can be touched while one of these lives.
class Opened {
 public:
  Opened();
  ~Opened();
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
};

// Aborts if one of the words of a kernel's parameters is an address of the host's memory that the device does not see.
void RequireWordsOnDevice(const void* parameters, size_t bytes);
template <typename Params>
void RequireOnDevice([[maybe_unused]] const Params& params) {
#if __has_builtin(__builtin_clear_padding)
  Params copy = params;
  __builtin_clear_padding(&copy);  // where an old address may lie
  RequireWordsOnDevice(&copy, sizeof copy);
#endif
}

}  // namespace palimpsest::emulator
