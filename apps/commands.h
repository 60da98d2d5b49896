// The subcommands: each adds itself to the command line and runs when it is parsed.
#pragma once

#include <CLI/CLI.hpp>

namespace kivi::app {

void add_run(CLI::App& app);
void add_compare(CLI::App& app);
void add_info(CLI::App& app);
void add_eval(CLI::App& app);
void add_study(CLI::App& app);
void add_serve(CLI::App& app);
void add_bench(CLI::App& app);

// Of eval.
void add_eval_tasks(CLI::App& eval);

// Of bench.
void add_bench_attention(CLI::App& bench);
void add_bench_decode(CLI::App& bench);
void add_bench_step(CLI::App& bench);
void add_bench_throughput(CLI::App& bench);

}  // namespace kivi::app
