// absl::Mutex and absl::CondVar on pthread's, for builds with ThreadSanitizer only.
//
// A packaged Abseil is not instrumented, so ThreadSanitizer cannot see that its mutex orders anything and reports every
// guarded variable as a race. These definitions take the place of the library's, for our code, for the library's own
// callers (absl::Notification) and for gRPC; the sanitizer knows pthread's. Readers exclude each other here, which is
// slower and allowed.
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace {

struct RealMutex {
  pthread_mutex_t mutex;
  pthread_cond_t changed;  // somebody unlocked: conditions may be true now
};

template <class Real, class Make>
Real* GetOrMake(std::atomic<intptr_t>& place, const Make& make) {
  intptr_t found = place.load(std::memory_order_acquire);
  if (found == 0) {
    Real* made = make();
    if (place.compare_exchange_strong(found, reinterpret_cast<intptr_t>(made), std::memory_order_acq_rel)) return made;
    delete made;
  }
  return reinterpret_cast<Real*>(found);
}

RealMutex* Real(std::atomic<intptr_t>& place) {
  return GetOrMake<RealMutex>(place, [] {
    auto* made = new RealMutex;
    pthread_mutex_init(&made->mutex, nullptr);
    pthread_cond_init(&made->changed, nullptr);
    return made;
  });
}

pthread_cond_t* RealCondition(std::atomic<intptr_t>& place) {
  return GetOrMake<pthread_cond_t>(place, [] {
    auto* made = new pthread_cond_t;
    pthread_cond_init(made, nullptr);
    return made;
  });
}

// False: the deadline came.
bool WaitUntil(pthread_cond_t* condition, pthread_mutex_t* mutex, absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) {
    pthread_cond_wait(condition, mutex);
    return true;
  }
  const timespec until = absl::ToTimespec(std::max(deadline, absl::UnixEpoch()));
  return pthread_cond_timedwait(condition, mutex, &until) == 0;
}

bool AwaitUntil(RealMutex* real, const absl::Condition& condition, absl::Time deadline) {
  if (condition.Eval()) return true;
  // This thread may have changed what others wait for. Only now: one that has merely woken up has changed nothing, and
  // two of them would wake each other for ever.
  pthread_cond_broadcast(&real->changed);
  do {
    if (!WaitUntil(&real->changed, &real->mutex, deadline)) return condition.Eval();
  } while (!condition.Eval());
  return true;
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

Mutex::~Mutex() {
  auto* real = reinterpret_cast<RealMutex*>(mu_.load());
  if (real == nullptr) return;
  pthread_cond_destroy(&real->changed);
  pthread_mutex_destroy(&real->mutex);
  delete real;
}

void Mutex::Lock() { pthread_mutex_lock(&Real(mu_)->mutex); }
void Mutex::Unlock() {
  RealMutex* real = Real(mu_);
  pthread_cond_broadcast(&real->changed);
  pthread_mutex_unlock(&real->mutex);
}
bool Mutex::TryLock() { return pthread_mutex_trylock(&Real(mu_)->mutex) == 0; }
void Mutex::ReaderLock() { Lock(); }
void Mutex::ReaderUnlock() { Unlock(); }
bool Mutex::ReaderTryLock() { return TryLock(); }
void Mutex::AssertHeld() const {}
void Mutex::AssertReaderHeld() const {}
void Mutex::AssertNotHeld() const {}

void Mutex::Await(const Condition& condition) { AwaitUntil(Real(mu_), condition, InfiniteFuture()); }
bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  return AwaitUntil(Real(mu_), condition, Now() + timeout);
}
bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  return AwaitUntil(Real(mu_), condition, deadline);
}
void Mutex::LockWhen(const Condition& condition) {
  Lock();
  Await(condition);
}
bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  Lock();
  return AwaitWithTimeout(condition, timeout);
}
bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  Lock();
  return AwaitWithDeadline(condition, deadline);
}
void Mutex::ReaderLockWhen(const Condition& condition) { LockWhen(condition); }
bool Mutex::ReaderLockWhenWithTimeout(const Condition& condition, Duration timeout) {
  return LockWhenWithTimeout(condition, timeout);
}
bool Mutex::ReaderLockWhenWithDeadline(const Condition& condition, Time deadline) {
  return LockWhenWithDeadline(condition, deadline);
}

CondVar::~CondVar() {
  auto* real = reinterpret_cast<pthread_cond_t*>(cv_.load());
  if (real == nullptr) return;
  pthread_cond_destroy(real);
  delete real;
}
void CondVar::Wait(Mutex* mutex) { WaitWithDeadline(mutex, InfiniteFuture()); }
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) { return WaitWithDeadline(mutex, Now() + timeout); }
// True: the deadline came.
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  RealMutex* real = Real(mutex->mu_);
  pthread_cond_broadcast(&real->changed);
  return !WaitUntil(RealCondition(cv_), &real->mutex, deadline);
}
void CondVar::Signal() { pthread_cond_signal(RealCondition(cv_)); }
void CondVar::SignalAll() { pthread_cond_broadcast(RealCondition(cv_)); }

ABSL_NAMESPACE_END
}  // namespace absl
