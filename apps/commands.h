// The subcommands: each adds itself to the command line and runs when it is parsed.
#pragma once

#include <CLI/CLI.hpp>

namespace kivi::app {

void add_run(CLI::App& app);
void add_compare(CLI::App& app);
void add_info(CLI::App& app);
void add_eval(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace kivi::app
