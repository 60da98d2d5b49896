// The study as a page that a person reads.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace kivi {

// A short text for those who give none, and what it is.
std::string_view built_in_text();
inline constexpr std::string_view kBuiltInTextName = "built-in: Wikipedia's \"Du Fu\", from WikiText-2 (CC BY-SA 3.0)";

// One file that fetches nothing: the study as JSON, and the script that draws it.
std::string html_report(const nlohmann::ordered_json& study);

}  // namespace kivi
