// The kivi executable. Exit codes: 0, 1 a run that failed, 2 a command line that cannot be run.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <exception>
#include <string>

#include "commands.h"
#include "core/error.h"

namespace {

constexpr int kRunError = 1;
constexpr int kUsageError = 2;

int report(std::string message, int exit_code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  fmt::print(stderr, "kivi: {}\n", message);
  return exit_code;
}

int run(int argc, char** argv) {
  CLI::App app("Runs large language models with a 2-bit KV cache.");
  app.name("kivi");
  app.set_version_flag("--version", "kivi " KIVI_VERSION);
  app.require_subcommand(0, 1);  // so that an unknown one is named by the error
  kivi::app::add_run(app);
  kivi::app::add_compare(app);
  kivi::app::add_info(app);
  kivi::app::add_eval(app);
  kivi::app::add_study(app);
  kivi::app::add_serve(app);
  kivi::app::add_bench(app);
  try {
    app.parse(argc, argv);
    if (!app.get_subcommands().empty()) return 0;
    return report("a subcommand is needed: run, compare, info, eval, study, serve or bench; see --help", kUsageError);
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::ParseError& error) {
    return report(fmt::format("{}; see --help", error.what()), kUsageError);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const kivi::Error& error) {
    return report(error.what(), error.code() == kivi::ErrorCode::kInvalidArgument ? kUsageError : kRunError);
  } catch (const std::bad_alloc&) {
    return report("out of memory", kRunError);
  } catch (const std::exception& error) {
    return report(error.what(), kRunError);
  }
}
