// How what takes long tells how far it is.
#pragma once

#include <functional>

namespace kivi {

// Called now and then with the part that is done, in [0, 1].
using ProgressCallback = std::function<void(double)>;

}  // namespace kivi
