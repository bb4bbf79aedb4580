// Which of the described processors (tuning.h) calls are planned for.
#pragma once

#include <string>

#include "cpu/rnn/tuning.h"

namespace rnnext {

// Told by RNNEXT_CPU_MACHINE, or by the processor's maker, family and features; its cache sizes are
// then those that the system tells. Nothing is measured: the weights' gradients are summed as the
// plan shares them out, and must have the same bits in every process of a machine.
const Machine& this_machine();

// A row of tuning.h by its name, numbers that differ from it, or, without a name, from `machine`:
// "zen5", "zen5,far_rate=10", "wait=900,line=30". Throws std::invalid_argument.
Machine machine_of(const std::string& text, const Machine& machine = this_machine());

}  // namespace rnnext
