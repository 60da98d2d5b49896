// Files that are compiled into the program (CMake fills embedded.cc.in).
#pragma once

#include <string_view>

namespace kivi {

struct EmbeddedFile {
  std::string_view path;  // of the request
  std::string_view content_type;
  std::string_view content;
};

// Throws Error{kInternal} if there is none at that path.
const EmbeddedFile& embedded_file(std::string_view path);

}  // namespace kivi
