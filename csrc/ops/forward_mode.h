// Forward mode of the recurrence.
#pragma once

#include "ops/signatures.h"

namespace rnnext {

// Gives the results of a call without a leak, some of whose arguments have tangents, theirs.
void set_tangents(const RecurrenceArguments& a, const Tensor& output, const Tensor& h_n);

}  // namespace rnnext
