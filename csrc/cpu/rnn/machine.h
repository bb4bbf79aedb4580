// Which of the described processors (tuning.h) calls are planned for.
#pragma once

#include <string>

#include "cpu/rnn/tuning.h"

namespace rnnext {

// Told by RNNEXT_CPU_MACHINE, or by the processor's maker, family and features; its cache sizes are
// those that the system tells. Nothing is measured: the weights' gradients are summed as the plan
// shares them out, and must have the same bits in every process of a machine.
const Machine& this_machine();

// The row of tuning.h of that name. Throws std::invalid_argument, which names them.
const Machine& machine_named(const std::string& name);

}  // namespace rnnext
