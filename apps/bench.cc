// kivi bench: speed.
#include "commands.h"

namespace kivi::app {

void add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed")->require_subcommand(1);
  add_bench_attention(*bench);
  add_bench_decode(*bench);
  add_bench_step(*bench);
  add_bench_throughput(*bench);
}

}  // namespace kivi::app
