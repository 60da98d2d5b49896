// Reads the files of data sets. What is wrong with one is said with its place.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/json_field.h"

namespace kivi {

// The path of a set's file: in the set's folder in `data`, or in `data` itself. Throws Error{kNotFound} if it is in
// neither.
std::string find_task_file(const std::string& data, const std::string& set, const std::string& file);

// The *.txt files of a set, likewise, in the order of their names; at least one.
std::vector<std::string> find_task_texts(const std::string& data, const std::string& set);

// The bytes of a file. Throws as MappedFile does.
std::string read_task_text(const std::string& path);

// Visits the object in each line that is not blank. Throws Error{kCorrupt} for a line without one, and for a file
// without a line.
void for_each_json_line(const std::string& path, const std::function<void(const JsonField&)>& visit);

}  // namespace kivi
