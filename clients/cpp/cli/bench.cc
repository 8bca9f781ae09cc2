// `palimpsest bench`: a load generator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "clients/cpp/cli/bench_report.h"
#include "clients/cpp/cli/command.h"
#include "clients/cpp/cli/load.h"
#include "clients/cpp/cli/text_pieces.h"

namespace palimpsest::cli {
namespace {

// Sends requests over some connections and records what came of them. Thread-safe; must outlive its requests.
class Recorder {
 public:
  Recorder(std::vector<std::unique_ptr<client::Client>>& clients, client::CallOptions options)
      : clients_(clients), options_(options) {}
  ~Recorder() { WaitUntil(0); }

  // Sends `request`, which was due at `arrival`.
  void Start(const v1::GenerateRequest& request, absl::Time arrival) ABSL_LOCKS_EXCLUDED(mu_) {
    auto record = std::make_shared<RequestRecord>();
    record->arrival = Seconds(arrival);
    size_t client;
    {
      absl::MutexLock lock(&mu_);
      ++in_flight_;
      client = started_++ % clients_.size();
    }
    // gRPC runs the two callbacks of one call one after the other: the record needs no lock until it is handed in.
    clients_[client]->GenerateAsync(
        request,
        [this, record](const v1::GenerateResponse& message) {
          if (message.tokens_size() > 0) {
            record->last = Seconds(absl::Now());
            if (record->generated == 0) record->first = record->last;
            record->generated += message.tokens_size();
          }
          if (message.has_finish()) {
            record->prompt_tokens = message.finish().usage().prompt_tokens();
            record->queue = message.finish().usage().queue_seconds();
          }
        },
        [this, record](const absl::Status& status) {
          record->end = Seconds(absl::Now());
          record->code = status.code();
          absl::MutexLock lock(&mu_);
          records_.push_back(*record);
          generated_ += record->generated;
          if (!status.ok()) last_error_ = status;
          --in_flight_;
        },
        options_);
  }

  // Waits until at most `most` requests are in flight, or until `deadline`; returns whether they are.
  bool WaitUntil(int64_t most, absl::Time deadline = absl::InfiniteFuture()) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    const auto few = [this, most]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return in_flight_ <= most; };
    return mu_.AwaitWithDeadline(absl::Condition(&few), deadline);
  }

  struct Progress {
    int64_t done, in_flight, generated;
  };
  Progress GetProgress() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return {static_cast<int64_t>(records_.size()), in_flight_, generated_};
  }
  std::vector<RequestRecord> Records() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return records_;
  }
  absl::Status last_error() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return last_error_;
  }

 private:
  double Seconds(absl::Time time) const { return absl::ToDoubleSeconds(time - begin_); }

  std::vector<std::unique_ptr<client::Client>>& clients_;
  const client::CallOptions options_;
  const absl::Time begin_ = absl::Now();
  mutable absl::Mutex mu_;
  size_t started_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t generated_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<RequestRecord> records_ ABSL_GUARDED_BY(mu_);
  absl::Status last_error_ ABSL_GUARDED_BY(mu_);
};

class Bench : public Command {
 public:
  Bench()
      : Command(
            {.name = "bench",
             .summary = "put a load on the server and report latencies and throughput",
             .description =
                 "Sends Generate requests and reports percentiles of the time to first token, the time per output "
                 "token and the whole, throughput, goodput under limits, and errors by code.\n\n"
                 "Closed loop: --concurrency requests are under way at any time. Open loop: --rate requests arrive "
                 "per second, at random times (Poisson), whether or not earlier ones have ended; latencies count "
                 "from the arrival. Ends after --requests or --duration, whichever comes first; Ctrl-C cancels what "
                 "is under way and reports the rest.\n\n"
                 "Lengths, in tokens: fixed:N, uniform:A:B, lognormal:MEAN:SIGMA.\n\n"
                 "  palimpsest bench --concurrency 64 --requests 512 --prompt_tokens lognormal:200:0.6\n"
                 "  palimpsest bench --rate 5 --duration 60s --slo_ttft 300ms --slo_tpot 50ms --svg load.svg"}) {}

  void AddFlags(FlagSet& flags) override {
    flags.Add("model", &model_, "MODEL", "which model; not needed when the server has one");
    flags.Group("Load");
    flags.Add("concurrency", &concurrency_, "N", "closed loop: requests under way at once; 8 if --rate is not given");
    flags.Add("rate", &rate_, "R", "open loop: requests that arrive per second");
    flags.Add("requests", &requests_, "N", "end after so many requests; 100 if --duration is not given");
    flags.Add("duration", &duration_, "TIME", "start no more requests after this long");
    flags.Add("warmup", &warmup_, "N", "requests before the clock starts, which do not count");
    flags.Add("prompt_tokens", &prompt_tokens_, "LENGTHS", "lengths of prompts");
    flags.Add("output_tokens", &output_tokens_, "LENGTHS", "lengths of replies");
    flags.Add("prompt_file", &prompt_file_, "FILE",
              "cut prompts out of this text (its first 4 MB); otherwise they are ids at random");
    flags.Add("temperature", &temperature_, "T", "of the sampling");
    flags.Add("stop_at_end_of_text", &stop_at_end_of_text_, "",
              "let the model's end-of-text token end a reply early; otherwise replies have just the lengths drawn");
    flags.Add("connections", &connections_, "N", "connections that the requests are spread over");
    flags.Add("seed", &seed_, "N", "same seed, same load");
    flags.Group("Report");
    flags.Add("slo_ttft", &slo_first_token_, "TIME", "limit on the time to first token, for goodput");
    flags.Add("slo_tpot", &slo_per_token_, "TIME", "limit on a request's mean time per output token, for goodput");
    flags.Add("json", &json_, "FILE", "write the report as JSON; - is stdout, instead of the table");
    flags.Add("svg", &svg_, "FILE", "draw the latencies' distributions");
  }

  absl::Status Run(Context& context) override {
    RETURN_IF_ERROR(CheckFlags());
    std::vector<std::unique_ptr<client::Client>> clients;
    for (int64_t i = 0; i < connections_; ++i) {
      ASSIGN_OR_RETURN(std::unique_ptr<client::Client> client, context.Connect());
      clients.push_back(std::move(client));
    }
    ASSIGN_OR_RETURN(const v1::Model model, FindModel(*clients[0], context));
    std::vector<int32_t> text;
    if (!prompt_file_.empty()) {
      ASSIGN_OR_RETURN(text, TokenizeFile(*clients[0], context, model.name()));
    }
    const Prompts prompts(std::move(text), model.vocabulary_size());
    if (prompt_file_.empty() && model.vocabulary_size() < 1) {
      return absl::InternalError(absl::StrCat(model.name(), " has no vocabulary"));
    }

    const BenchSetup setup = Setup(context, model);
    Interrupt::Scope scope(context.interrupt);
    Random random(seed_);
    {
      Recorder warmup(clients, context.Call(scope.cancellation()));
      for (int64_t i = 0; i < warmup_; ++i) {
        warmup.Start(NextRequest(model.name(), prompts, random), absl::Now());
        warmup.WaitUntil(concurrency_.value_or(8) - 1);
      }
      warmup.WaitUntil(0);
      if (!warmup.last_error().ok() && !scope.interrupted()) return warmup.last_error();
    }
    Recorder recorder(clients, context.Call(scope.cancellation()));
    RunLoad(context, scope, recorder, model.name(), prompts, random);

    const BenchReport report = Summarize(setup, recorder.Records());
    if (report.requests == 0) return absl::CancelledError("no request was sent");
    if (json_ != "-") std::fputs(ReportTable(report, context.terminal).c_str(), stdout);
    if (!json_.empty()) RETURN_IF_ERROR(WriteAll(json_, ReportJson(report)));
    if (!svg_.empty()) RETURN_IF_ERROR(WriteAll(svg_, ReportSvg(report)));
    if (report.completed == 0) return recorder.last_error();
    return absl::OkStatus();
  }

 private:
  absl::Status CheckFlags() {
    if (concurrency_ && rate_)
      return UsageError("--concurrency (closed loop) and --rate (open loop) exclude each other");
    if (concurrency_ && *concurrency_ < 1) return UsageError("--concurrency is at least 1");
    if (rate_ && !(*rate_ > 0)) return UsageError("--rate is more than 0");
    if (connections_ < 1) return UsageError("--connections is at least 1");
    if (requests_ && *requests_ < 1) return UsageError("--requests is at least 1");
    if (!requests_ && !duration_) requests_ = 100;
    for (const auto& [text, lengths] :
         {std::pair(&prompt_tokens_, &prompt_lengths_), std::pair(&output_tokens_, &output_lengths_)}) {
      absl::StatusOr<Lengths> parsed = Lengths::Parse(*text);
      if (!parsed.ok()) return UsageError(parsed.status().message());
      *lengths = *std::move(parsed);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<v1::Model> FindModel(client::Client& client, const Context& context) const {
    if (!model_.empty()) return client.GetModel(ResourceName("models", model_), context.Call());
    ASSIGN_OR_RETURN(const std::vector<v1::Model> models, client.ListModels(context.Call()));
    if (models.size() != 1) {
      return absl::InvalidArgumentError(absl::StrCat("the server has ", models.size(), " models: --model says which"));
    }
    return models[0];
  }

  absl::StatusOr<std::vector<int32_t>> TokenizeFile(client::Client& client, const Context& context,
                                                    const std::string& model) const {
    ASSIGN_OR_RETURN(std::string text, ReadAll(prompt_file_));
    text.resize(std::min<size_t>(text.size(), 4 << 20));
    size_t taken = 0;
    TextPieces pieces(
        [&](char* to, size_t bytes) -> absl::StatusOr<size_t> {
          const size_t count = text.copy(to, bytes, taken);
          taken += count;
          return count;
        },
        1 << 18);
    std::vector<int32_t> ids;
    while (true) {
      v1::TokenizeRequest request;
      request.set_model(model);
      ASSIGN_OR_RETURN(*request.mutable_text(), pieces.Next());
      if (request.text().empty()) break;
      if (FindInvalidUtf8(request.text()) != std::string::npos) {
        if (taken == text.size() && !ids.empty()) break;  // the 4 MB end inside a character
        return absl::InvalidArgumentError(absl::StrCat(prompt_file_, " is not UTF-8 text"));
      }
      ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client.Tokenize(request, context.Call()));
      ids.insert(ids.end(), response.ids().begin(), response.ids().end());
    }
    if (ids.empty()) return absl::InvalidArgumentError(absl::StrCat(prompt_file_, " is empty"));
    return ids;
  }

  BenchSetup Setup(const Context& context, const v1::Model& model) const {
    const auto seconds = [](const std::optional<absl::Duration>& time) {
      return time ? std::optional<double>(absl::ToDoubleSeconds(*time)) : std::nullopt;
    };
    BenchSetup setup;
    setup.server = context.server.server;
    setup.model = model.name();
    setup.backend = model.backend();
    setup.load = rate_ ? absl::StrCat("Poisson, ", *rate_, " requests/s")
                       : absl::StrCat("closed loop, ", concurrency_.value_or(8), " at once");
    setup.prompt_lengths = prompt_tokens_;
    setup.output_lengths = output_tokens_;
    setup.seed = static_cast<uint64_t>(seed_);
    setup.slo_first_token = seconds(slo_first_token_);
    setup.slo_per_token = seconds(slo_per_token_);
    return setup;
  }

  v1::GenerateRequest NextRequest(const std::string& model, const Prompts& prompts, Random& random) const {
    v1::GenerateRequest request;
    request.set_model(model);
    const std::vector<int32_t> prompt = prompts.Draw(prompt_lengths_.Draw(random), random);
    request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    request.mutable_stop()->set_max_tokens(static_cast<int32_t>(output_lengths_.Draw(random)));
    request.mutable_stop()->set_ignore_end_of_text(!stop_at_end_of_text_);
    request.mutable_sampling()->set_temperature(static_cast<float>(temperature_));
    request.mutable_sampling()->set_seed(random.Next());
    return request;
  }

  void RunLoad(const Context& context, const Interrupt::Scope& scope, Recorder& recorder, const std::string& model,
               const Prompts& prompts, Random& random) const {
    ProgressLine progress(context.terminal);
    const absl::Time start = absl::Now();
    const absl::Time stop = duration_ ? start + *duration_ : absl::InfiniteFuture();
    const int64_t most = requests_.value_or(std::numeric_limits<int64_t>::max());
    const auto show = [&] {
      if (progress.Due()) progress.Show(ProgressText(context.terminal, recorder, start));
    };
    // Waits for the time, or for room; false: the run is over.
    const auto wait_for_turn = [&](absl::Time due) {
      while (!scope.interrupted() && absl::Now() < stop) {
        show();
        const absl::Time slice = std::min({absl::Now() + absl::Milliseconds(100), stop, rate_ ? due : stop});
        if (!rate_ && recorder.WaitUntil(concurrency_.value_or(8) - 1, slice)) return true;
        if (rate_ && (absl::Now() >= due || (scope.SleepFor(slice - absl::Now()) && absl::Now() >= due))) return true;
      }
      return false;
    };
    absl::Time due = start;
    for (int64_t i = 0; i < most; ++i) {
      // Drawn before the turn comes, so that drawing delays no request.
      const v1::GenerateRequest request = NextRequest(model, prompts, random);
      if (rate_) due += absl::Seconds(random.Exponential(1 / *rate_));
      if (!wait_for_turn(due) || scope.interrupted()) break;
      recorder.Start(request, rate_ ? due : absl::Now());
    }
    while (!recorder.WaitUntil(0, absl::Now() + absl::Milliseconds(100))) show();
  }

  std::string ProgressText(const Terminal& terminal, const Recorder& recorder, absl::Time start) const {
    const Recorder::Progress now = recorder.GetProgress();
    const double elapsed = absl::ToDoubleSeconds(absl::Now() - start);
    double share = requests_ ? static_cast<double>(now.done) / *requests_ : 0;
    if (duration_) share = std::max(share, elapsed / absl::ToDoubleSeconds(*duration_));
    share = std::min(share, 1.0);
    return absl::StrFormat("%s %3.0f%%  ETA %s  %s done  %d under way  %s tokens/s",
                           terminal.Err(Style::kCyan, Bar(share, 24)), 100 * share,
                           FormatSeconds(share > 0 ? elapsed / share - elapsed : NAN), FormatCount(now.done),
                           now.in_flight, FormatCount(std::llround(now.generated / std::max(elapsed, 1e-9))));
  }

  std::string model_, prompt_file_, json_, svg_;
  std::optional<int64_t> concurrency_, requests_;
  std::optional<double> rate_;
  std::optional<absl::Duration> duration_, slo_first_token_, slo_per_token_;
  int64_t warmup_ = 4, connections_ = 1, seed_ = 1;
  double temperature_ = 1;
  bool stop_at_end_of_text_ = false;
  std::string prompt_tokens_ = "uniform:32:128";
  std::string output_tokens_ = "fixed:64";
  Lengths prompt_lengths_, output_lengths_;
};

}  // namespace

void AddBench(Commands& commands) { commands.push_back(std::make_unique<Bench>()); }

}  // namespace palimpsest::cli
