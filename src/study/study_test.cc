#include "study/study.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "core/error.h"
#include "engine/tiny_session.h"
#include "study/layer_summary.h"
#include "study/quality.h"
#include "study/recommendation.h"
#include "study/report.h"

namespace kivi {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

class StudyTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder); }
  void TearDown() override { fs::remove_all(folder); }

  // How often progress was told, which it is for work alone.
  int run() {
    int n_told = 0;
    StudyOptions with_progress = options;
    with_progress.progress = [&](double part) {
      EXPECT_TRUE(part > 0 && part < 1 + 1e-9) << part;
      ++n_told;
    };
    const StudyDevice device{session.backend.get(), &session.decoder};
    const StudyDevice other_host{other.backend.get(), &other.decoder};
    result = run_study({.device = device,
                        .host = has_other_host ? other_host : device,
                        .program_version = "0",
                        .model_sha256 = "m",
                        .text_sha256 = text,
                        .tokens = tokens},
                       with_progress, folder);
    return n_told;
  }
  const Json& setting(const std::string& name) const {
    for (const Json& s : result["quality"]["settings"]) {
      if (s["name"] == name) return s;
    }
    throw std::out_of_range(name);
  }

  TinySession session{make_backend({.device = "cpu", .n_threads = 2})};
  TinySession other{make_backend({.device = "cpu", .n_threads = 1})};
  bool has_other_host = false;
  std::vector<TokenId> tokens = session.random_tokens(3 * 192, 3);
  std::string text = "t";
  StudyOptions options{.presets = {kv_presets().begin(), kv_presets().end()}, .context = 192};
  fs::path folder = fs::path(testing::TempDir()) / ("kivi-study-" + std::to_string(getpid()));
  Json result;
};

TEST_F(StudyTest, MeasuresEverythingItNames) {
  run();
  EXPECT_EQ(result["chunks"], (Json{{"context", 192}, {"n", 3}, {"captured", 3}}));
  ASSERT_EQ(result["layers"].size(), 2U);
  EXPECT_EQ(result["maps"].size(), 2U * 3U * 1U * 2U / 2U);  // two layers, three sides, one head
  EXPECT_EQ(result["maps"][0]["bins"].size(), 64U);
  for (const char* table : {"presets", "axes", "group_size", "residual"}) {
    ASSERT_GT(result["quality"][table].size(), 1U) << table;
    for (const Json& row : result["quality"][table]) {
      const Json& s = setting(row["setting"]);
      EXPECT_EQ(s["chunks"].size(), 3U);
      EXPECT_LE(s["kl"]["low"], s["kl"]["mean"]);
    }
  }
  EXPECT_EQ(setting("f16")["kl"]["mean"], 0);
  EXPECT_GT(setting("kivi2:residual=0")["kl"]["mean"], setting("kivi2")["kl"]["mean"]);
  EXPECT_GT(setting("kivi2:residual=0 with K per channel, V per channel")["kl"]["mean"], 0);
}

TEST_F(StudyTest, GoesOnFromWhatIsKept) {
  EXPECT_GT(run(), 0);
  const Json first = result;
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(result, first);
  std::vector<fs::path> parts;
  for (const auto& entry : fs::directory_iterator(folder)) parts.push_back(entry.path());
  const size_t n_settings = result["quality"]["settings"].size();
  EXPECT_EQ(parts.size(), 3U + n_settings);  // each captured chunk, and each setting on all chunks
  fs::remove(parts.front());
  EXPECT_GT(run(), 0);
  EXPECT_EQ(result, first);
  options.presets.pop_back();
  EXPECT_EQ(run(), 0);
  text = "other";
  EXPECT_GT(run(), 0);
}

// As beside a GPU.
TEST_F(StudyTest, FakeSettingsRunOnTheHost) {
  run();
  const Json together = result;
  fs::remove_all(folder);
  has_other_host = true;
  run();
  EXPECT_EQ(result["quality"], together["quality"]);
}

TEST_F(StudyTest, RefusesWhatCannotBeStudied) {
  const auto refused = [&](const StudyOptions& wrong) {
    options = wrong;
    EXPECT_THROW(run(), Error);
  };
  const StudyOptions right = options;
  options.context = 300;  // beyond the model's
  refused(options);
  refused({.presets = right.presets, .n_tokens = 200, .context = 192});  // one chunk
  refused({.presets = right.presets, .n_tokens = 1000});                 // no four chunks of 256
  refused({.presets = right.presets, .context = 192, .layers = {2}});
  refused({.presets = right.presets, .context = 192, .heads = {-1}});
  ModelConfig odd = session.config;
  odd.head_dim = 40;
  EXPECT_THROW(check_study(odd, right), Error);
}

TEST(ChunkPlan, CutsShortTextsIntoFour) {
  const auto plan = [](int64_t n_tokens, const StudyOptions& options) {
    const ChunkPlan chunks = plan_chunks(n_tokens, 8192, options);
    return std::pair(chunks.context, chunks.n_chunks);
  };
  EXPECT_EQ(plan(1000000, {}), std::pair(2048L, 8L));
  EXPECT_EQ(plan(1000000, {.is_quick = true}), std::pair(768L, 4L));
  EXPECT_EQ(plan(1000000, {.n_tokens = 65536}), std::pair(2048L, 32L));
  EXPECT_EQ(plan(3560, {}), std::pair(768L, 4L));
  EXPECT_EQ(plan(3560, {.context = 1000}), std::pair(1000L, 3L));
  EXPECT_THROW(plan(1023, {}), Error);
}

TEST(QualityPasses, StayWithinTheMemory) {
  const KvShape shape{.n_layers = 2, .n_kv_heads = 2, .head_dim = 32};
  const QualityPlan plan = plan_quality(shape, kv_presets(), 1024);
  const auto n = plan.settings.size();
  constexpr int64_t kPlenty = int64_t{1} << 40;
  EXPECT_EQ(quality_passes(shape, plan.settings, 1024, 2, kPlenty).size(), (n + 7) / 8);
  EXPECT_EQ(quality_passes(shape, plan.settings, 1024, 2, 1).size(), n);
  std::vector<QualitySetting> split = plan.settings;
  split[1].on_host = true;
  const auto passes = quality_passes(shape, split, 1024, 2, kPlenty);
  EXPECT_EQ(passes.size(), 1 + (n + 6) / 8);
  EXPECT_EQ(passes.back(), std::vector<size_t>{1});
  const int64_t f16 = 2 * memory_of(shape, parse_kv_config("f16"), 1024).allocated_bytes();
  size_t n_seen = 0;
  for (const auto& pass : quality_passes(shape, plan.settings, 1024, 2, 4 * f16)) {
    n_seen += pass.size();
    int64_t bytes = f16;
    for (const size_t i : pass) {
      const KvConfig kv = plan.settings[i].fake ? parse_kv_config("f16") : plan.settings[i].kv;
      bytes += 2 * memory_of(shape, kv, 1024).allocated_bytes();
    }
    EXPECT_LE(bytes, 4 * f16);
  }
  EXPECT_EQ(n_seen, n);
}

TEST(QualitySummary, TheLossIsOfTheSameChunks) {
  const KvShape shape{.n_layers = 2, .n_kv_heads = 2, .head_dim = 32};
  const std::vector<QualitySetting> settings = {{.name = "kivi2", .kv = parse_kv_config("kivi2")}};
  // Chunks differ much from each other, and little from f16.
  const std::vector<MeasuredQuality> measured = {
      {.chunks = {{3.1, 0.2, 0.8}, {1.1, 0.4, 0.6}}, .f16 = {{3, 0, 1}, {1, 0, 1}}}};
  const Json s = summarise_quality(shape, settings, measured, 1024)[0];
  EXPECT_NEAR(s["perplexity"], std::exp(2.1), 1e-9);
  EXPECT_NEAR(s["loss"]["mean"], std::exp(0.1) - 1, 1e-9);
  EXPECT_NEAR(s["loss"]["high"], std::exp(0.1) - 1, 1e-9);
  EXPECT_NEAR(s["kl"]["mean"], 0.3, 1e-9);
  EXPECT_NEAR(s["kl"]["high"], 0.3 + 12.706 * 0.1, 1e-3);
}

Json quality_with_loss(const char* name, double mean, double high) {
  return {{"name", name},
          {"loss", {{"mean", mean}, {"low", 2 * mean - high}, {"high", high}}},
          {"chunks", {{1, 1, 1}, {1, 1, 1}}}};
}

TEST(Recommendation, IsTheSmallestUnderTheLimit) {
  const KvShape shape{.n_layers = 2, .n_kv_heads = 2, .head_dim = 32};
  const Json qualities = {quality_with_loss("f16", 0, 0), quality_with_loss("kivi4", 0.004, 0.008),
                          quality_with_loss("kivi2", 0.05, 0.2)};
  const auto recommended = [&](double max_loss) {
    return recommend(shape, std::vector(kv_presets().begin(), kv_presets().begin() + 3), qualities,
                     {.max_loss = max_loss, .memory_bytes = 1 << 24, .model_context = 4096});
  };
  EXPECT_EQ(recommended(0.01)["setting"], "kivi4");
  EXPECT_EQ(recommended(0.01)["is_certain"], true);
  EXPECT_EQ(recommended(0.1)["setting"], "kivi2");
  EXPECT_EQ(recommended(0.1)["is_certain"], false);
  EXPECT_EQ(recommended(0.001)["setting"], "f16");
  const Json candidates = recommended(0.01)["candidates"];
  EXPECT_EQ(candidates[0]["setting"], "kivi2");
  EXPECT_EQ(candidates[2]["bytes_per_token"], 2 * 2 * 2 * 32 * 2);
  EXPECT_EQ(candidates[2]["context_in_memory"], (1 << 24) / 512);
  EXPECT_GT(candidates[0]["context_in_memory"], 5 * ((1 << 24) / 512));
}

TEST(LayerSummary, FindsTheChannelThatStandsOut) {
  const auto chunk = [](double of_channel_5, double of_channel_20) {
    std::vector<double> channels(2 * 16, 1.0);
    channels[5] = of_channel_5;
    channels[20] = of_channel_20;
    const Json side = {{"channels", channels}, {"first_token", of_channel_5}};
    return Json{{"layers",
                 {{{"layer", 0},
                   {"sides", {{"key", side}}},
                   {"attention", {{"sparsity", 0.5}, {"mass_of_first", Json::array({{1, of_channel_5 / 100}})}}},
                   {"errors", Json::array()}}}}};
  };
  const std::vector<Json> same = {chunk(10, 3), chunk(20, 3)};
  const Json key = summarise_layers(same, 16)[0]["sides"]["key"];
  EXPECT_NEAR(key["outlier_ratio"], (15.0 + 3) / 2, 1e-9);
  EXPECT_NEAR(key["largest_outlier_ratio"], 15, 1e-9);
  EXPECT_EQ(key["outliers"][0], (Json{{"head", 0}, {"channel", 5}, {"ratio", 15.0}}));
  EXPECT_EQ(key["outliers"][1]["channel"], 4);
  EXPECT_EQ(key["stability"], 1);
  EXPECT_NEAR(key["first_token"], 15, 1e-9);
  EXPECT_NEAR(summarise_layers(same, 16)[0]["attention"]["mass_of_first"][0][1], 0.15, 1e-9);
  const std::vector<Json> other = {chunk(10, 3), chunk(0, 3)};
  EXPECT_NEAR(summarise_layers(other, 16)[0]["sides"]["key"]["stability"], 0.5, 1e-9);
}

TEST(Report, IsOneFileWithTheStudyInIt) {
  const std::string page = html_report({{"text", {{"name", "</script><b>"}}}});
  EXPECT_EQ(page.find("</script><b>"), std::string::npos);
  EXPECT_NE(page.find("<\\/script>"), std::string::npos);
  for (const char* fetch : {"http://", "https://", "src=", "href=", "@import", "url("}) {
    EXPECT_EQ(page.find(fetch), std::string::npos) << fetch;
  }
}

TEST(Report, CarriesTheTextOfTheRepository) {
  std::ifstream in(KIVI_SOURCE_DIR "/data/wikitext-2-excerpt.txt", std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), built_in_text());
}

}  // namespace
}  // namespace kivi
