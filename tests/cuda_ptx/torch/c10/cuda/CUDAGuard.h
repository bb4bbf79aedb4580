// Twin of torch's header: the stand-in has one device.
#pragma once

#include <c10/core/Device.h>

#include <optional>

namespace c10::cuda {

struct OptionalCUDAGuard {
  explicit OptionalCUDAGuard(std::optional<c10::Device>) {}
};

}  // namespace c10::cuda
