#include "server/metrics/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/log.h"
#include "base/steady_clock.h"
#include "server/metrics/page_server.h"
#include "server/metrics/process_collector.h"

namespace palimpsest {
namespace {

using prometheus::ClientMetric;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Edges = Histogram::BucketBoundaries;

// The edges that other inference servers use, so that quantiles can be compared, and five below them: a step of a small
// model takes less than their lowest.
const Edges& FirstTokenEdges() {
  static const Edges& edges = *new Edges{.0005, .001, .002, .003, .005, .01, .02, .04, .06, .08, .1,  .25, .5,
                                         .75,   1,    2.5,  5,    7.5,  10,  20,  40,  80,  160, 640, 2560};
  return edges;
}
const Edges& TokenEdges() {
  static const Edges& edges = *new Edges{.0005, .001, .002, .003, .005, .01, .025, .05, .075, .1, .15, .2,
                                         .3,    .4,   .5,   .75,  1,    2.5, 5,    7.5, 10,   20, 40,  80};
  return edges;
}
const Edges& RequestEdges() {
  static const Edges& edges =
      *new Edges{.0005, .001, .002, .003, .005, .01, .02, .04, .08, .16, .3,  .5,  .8,  1,    1.5, 2,
                 2.5,   5,    10,   15,   20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
  return edges;
}
const Edges& SizeEdges() {
  static const Edges& edges = *new Edges{1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096};
  return edges;
}

// One value of a family that is made at scrape time.
ClientMetric Value(double value, std::vector<ClientMetric::Label> labels, MetricType type) {
  ClientMetric metric;
  metric.label = std::move(labels);
  if (type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return metric;
}

constexpr const char* kAlertingCodes[] = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "RESOURCE_EXHAUSTED"};
constexpr const char* kRefusalReasons[] = {"max_connections", "max_connections_per_peer", "peer", "descriptors"};
constexpr const char* kEndReasons[] = {"closed", "resets", "bytes"};
constexpr const char* kFinishReasons[] = {"length",        "stop_token", "stop_string", "context_full",
                                          "prompt",        "cancelled",  "deadline",    "drained",
                                          "device_failed", "no_memory",  "not_finite"};

const char* ReasonOf(const RequestSink::Finish& finish) {
  switch (finish.status.code()) {
    case absl::StatusCode::kOk:
      break;
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kUnavailable:
      return finish.device_failed ? "device_failed" : "drained";
    case absl::StatusCode::kResourceExhausted:
      return "no_memory";
    default:
      return "not_finite";
  }
  if (finish.generated_tokens == 0) return "prompt";
  switch (finish.reason) {
    case EndReason::kLength:
      return "length";
    case EndReason::kStopToken:
      return "stop_token";
    case EndReason::kStopString:
      return "stop_string";
    case EndReason::kContextFull:
      return "context_full";
  }
  return "length";
}

}  // namespace

struct Metrics::Impl {
  // What one model's engine feeds without a lock of ours.
  struct ModelSeries {
    Histogram* first_token;
    Histogram* per_token;
    Histogram* queue;
    Histogram* rows;
    Histogram* sequences;
    Histogram* iteration;
    std::map<std::string, prometheus::Counter*> finished;  // by reason
  };
  struct ModelSource {
    ModelLabels labels;
    std::function<EngineStats()> stats;
  };

  // Reads engines and sessions when asked.
  class Scraped : public prometheus::Collectable {
   public:
    explicit Scraped(Impl* impl) : impl_(impl) {}
    std::vector<MetricFamily> Collect() const override { return impl_->CollectScraped(); }

   private:
    Impl* const impl_;
  };

  Impl()
      : registry(std::make_shared<prometheus::Registry>()),
        scraped(std::make_shared<Scraped>(this)),
        process(MakeProcessCollector()) {
    auto histogram = [this](const char* name, const char* help) -> Family<Histogram>* {
      return &prometheus::BuildHistogram().Name(name).Help(help).Register(*registry);
    };
    first_token = histogram("palimpsest_time_to_first_token_seconds", "From a request's arrival to its first token.");
    per_token = histogram("palimpsest_time_per_output_token_seconds", "Between two tokens of one sequence.");
    queue = histogram("palimpsest_queue_time_seconds", "From a request's arrival until its sequence had a slot.");
    rows = histogram("palimpsest_batch_rows", "Tokens that one iteration of the engine processed.");
    sequences = histogram("palimpsest_batch_sequences", "Sequences that took part in one iteration of the engine.");
    iteration = histogram("palimpsest_iteration_seconds", "Duration of one iteration of the engine.");
    duration = histogram("palimpsest_request_duration_seconds", "From a call's arrival to its end.");
    read = histogram("palimpsest_request_read_seconds",
                     "From a call's arrival until its request was read: parsed, and turned into tokens.");
    stalls = &prometheus::BuildCounter()
                  .Name("palimpsest_calls_stalled_total")
                  .Help("Calls that were ended because their peers neither read nor sent anything for too long.")
                  .Register(*registry)
                  .Add({});
    retiring = &prometheus::BuildGauge()
                    .Name("palimpsest_model_versions_retiring")
                    .Help("Versions that were replaced and still serve their sessions.")
                    .Register(*registry);
    repository_loads = &prometheus::BuildCounter()
                            .Name("palimpsest_model_repository_loads_total")
                            .Help("Versions that the model repository has loaded, or tried to, by status code.")
                            .Register(*registry);
    owners_file_loads = &prometheus::BuildCounter()
                             .Name("palimpsest_owners_file_loads_total")
                             .Help("Times that a changed file of owners was read, by status code.")
                             .Register(*registry);
    owner_requests = &prometheus::BuildCounter()
                          .Name("palimpsest_owner_requests_total")
                          .Help("Calls that have ended, by owner and status code.")
                          .Register(*registry);
    owner_tokens = &prometheus::BuildCounter()
                        .Name("palimpsest_owner_generated_tokens_total")
                        .Help("Tokens generated, by owner.")
                        .Register(*registry);
    requests = &prometheus::BuildCounter()
                    .Name("palimpsest_requests_total")
                    .Help("Calls that have ended, by method and status code.")
                    .Register(*registry);
    finished = &prometheus::BuildCounter()
                    .Name("palimpsest_finished_total")
                    .Help("Requests that the engine has ended, by reason; prompt: prefilled or scored, none to follow.")
                    .Register(*registry);
    refused_connections = &prometheus::BuildCounter()
                               .Name("palimpsest_connections_refused_total")
                               .Help("Connections that were closed as they came, by the bound that was reached.")
                               .Register(*registry);
    for (const char* reason : kRefusalReasons) refused_connections->Add({{"reason", reason}});
    ended_connections = &prometheus::BuildCounter()
                             .Name("palimpsest_connections_ended_total")
                             .Help("Connections that have ended; closed: by either side in the ordinary way.")
                             .Register(*registry);
    for (const char* reason : kEndReasons) ended_connections->Add({{"reason", reason}});
  }

  ModelSeries SeriesOf(const std::string& model) {
    const std::map<std::string, std::string> labels = {{"model", model}};
    // All of them from the start: the first of its kind is then an increase.
    std::map<std::string, prometheus::Counter*> by_reason;
    for (const char* reason : kFinishReasons) {
      by_reason[reason] = &finished->Add({{"model", model}, {"reason", reason}});
    }
    return {&first_token->Add(labels, FirstTokenEdges()),
            &per_token->Add(labels, TokenEdges()),
            &queue->Add(labels, RequestEdges()),
            &rows->Add(labels, SizeEdges()),
            &sequences->Add(labels, SizeEdges()),
            &iteration->Add(labels, TokenEdges()),
            std::move(by_reason)};
  }

  void CollectSessions(std::vector<MetricFamily>& families) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::map<std::string, SessionStore::Counts> counts = session_counts();
    for (const auto& [model, unused] : models) counts[model];  // those without a session, too
    auto add = [&](const char* name, const char* help,
                   std::vector<std::pair<const char*, int64_t SessionStore::Counts::*>> values) {
      MetricFamily family{name, help, MetricType::Gauge, {}};
      for (const auto& [model, count] : counts) {
        for (const auto& [condition, value] : values) {
          std::vector<ClientMetric::Label> labels = {{"model", model}};
          if (condition[0] != 0) labels.push_back({"condition", condition});
          family.metric.push_back(Value(static_cast<double>(count.*value), std::move(labels), MetricType::Gauge));
        }
      }
      families.push_back(std::move(family));
    };
    using Counts = SessionStore::Counts;
    add("palimpsest_sessions", "Sessions, by condition. Idle ones are parked: they hold a state and no slot.",
        {{"idle", &Counts::idle}, {"active", &Counts::active}, {"quarantined", &Counts::quarantined}});
    add("palimpsest_snapshots", "Snapshots.", {{"", &Counts::snapshots}});
    add("palimpsest_state_bytes", "Bytes of the states that sessions and snapshots hold; shared ones count once.",
        {{"", &Counts::state_bytes}});
    auto limit = [&families](const char* name, const char* help, int64_t value) {
      families.push_back({name, help, MetricType::Gauge, {Value(static_cast<double>(value), {}, MetricType::Gauge)}});
    };
    const SessionStore::Use use = session_use();
    limit("palimpsest_sessions_max", "Sessions that there may be.", use.limits.max_sessions);
    limit("palimpsest_snapshots_max", "Snapshots that there may be.", use.limits.max_snapshots);
    limit("palimpsest_parked_bytes", "Bytes that sessions and snapshots count as: of a full state each.",
          use.all.state_bytes);
    if (use.limits.max_state_bytes != SessionShare::kNoLimit) {
      limit("palimpsest_parked_bytes_max", "Bytes that they may count as.", use.limits.max_state_bytes);
    }
    MetricFamily refused{
        "palimpsest_parking_refused_total",
        "Sessions, forks and snapshots refused because a limit, or an owner's share of it, was used up.",
        MetricType::Counter,
        {}};
    for (const char* share : {"", "share."}) {
      for (const char* name : {"max_sessions", "max_snapshots", "max_state_bytes"}) {
        const std::string key = absl::StrCat(share, name);
        const auto found = use.refusals.find(key);
        refused.metric.push_back(Value(found == use.refusals.end() ? 0 : static_cast<double>(found->second),
                                       {{"limit", key}}, MetricType::Counter));
      }
    }
    families.push_back(std::move(refused));
    const struct {
      const char* name;
      const char* help;
      int64_t ParkedUse::*value;
    } owners[] = {{"palimpsest_owner_sessions", "Sessions, by owner.", &ParkedUse::sessions},
                  {"palimpsest_owner_snapshots", "Snapshots, by owner.", &ParkedUse::snapshots},
                  {"palimpsest_owner_state_bytes", "Bytes that they count as, of a full state each, by owner.",
                   &ParkedUse::state_bytes}};
    for (const auto& family : owners) {
      MetricFamily made{family.name, family.help, MetricType::Gauge, {}};
      for (const auto& [owner, parked] : use.by_owner) {
        made.metric.push_back(Value(static_cast<double>(parked.*family.value), {{"owner", owner}}, MetricType::Gauge));
      }
      families.push_back(std::move(made));
    }
  }

  void CollectRequestIds(std::vector<MetricFamily>& families) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const RequestIdCounts counts = request_ids();
    auto add = [&families](const char* name, const char* help, MetricType type, int64_t value) {
      families.push_back({name, help, type, {Value(static_cast<double>(value), {}, type)}});
    };
    add("palimpsest_request_ids", "Request ids of creating calls remembered.", MetricType::Gauge, counts.ids);
    add("palimpsest_request_id_bytes", "Bytes of remembered request ids and their answers.", MetricType::Gauge,
        counts.bytes);
    add("palimpsest_request_id_bytes_max", "Bytes that they may have.", MetricType::Gauge, counts.max_bytes);
    add("palimpsest_request_id_refused_total", "Creating calls refused because no more ids could be remembered.",
        MetricType::Counter, counts.refusals);
  }

  std::vector<MetricFamily> CollectScraped() const ABSL_LOCKS_EXCLUDED(mu) {
    std::vector<MetricFamily> families;
    auto family = [&families](const char* name, const char* help, MetricType type) -> MetricFamily& {
      return families.emplace_back(MetricFamily{name, help, type, {}});
    };
    const BuildInfo build = GetBuildInfo();
    family("palimpsest_build_info", "Always 1; see the labels.", MetricType::Gauge)
        .metric.push_back(Value(1, {{"version", build.version}, {"commit", build.commit}}, MetricType::Gauge));

    family("palimpsest_ready", "Whether the server takes requests: 1, or 0 while it starts or drains.",
           MetricType::Gauge)
        .metric.push_back(Value(ready ? 1 : 0, {}, MetricType::Gauge));

    family("palimpsest_log_lines_dropped_total", "Lines of the log that were lost, because nobody read them.",
           MetricType::Counter)
        .metric.push_back(Value(static_cast<double>(LogLinesDropped()), {}, MetricType::Counter));

    family("palimpsest_accepting", "Whether new connections are accepted: 1, or 0 while the listener is stuck.",
           MetricType::Gauge)
        .metric.push_back(Value(accepting ? 1 : 0, {}, MetricType::Gauge));

    absl::MutexLock lock(&mu);
    if (open_connections) {
      family("palimpsest_connections", "Connections that are open.", MetricType::Gauge)
          .metric.push_back(Value(static_cast<double>(open_connections()), {}, MetricType::Gauge));
      family("palimpsest_connections_max", "Connections that may be open.", MetricType::Gauge)
          .metric.push_back(Value(static_cast<double>(max_connections), {}, MetricType::Gauge));
    }
    if (readiness) {
      auto& made =
          family("palimpsest_model_ready", "Whether the model is ready; 0: it is loading or going.", MetricType::Gauge);
      for (const auto& [model, is_ready] : readiness()) {
        made.metric.push_back(Value(is_ready ? 1 : 0, {{"model", model}}, MetricType::Gauge));
      }
    }
    std::vector<std::pair<const ModelLabels*, EngineStats>> stats;
    for (const auto& [id, source] : models) stats.emplace_back(&source.labels, source.stats());

    auto& info = family("palimpsest_model_info", "Always 1; see the labels.", MetricType::Gauge);
    for (const auto& [labels, unused] : stats) {
      info.metric.push_back(Value(1,
                                  {{"model", labels->model},
                                   {"architecture", labels->architecture},
                                   {"dtype", labels->dtype},
                                   {"backend", labels->backend}},
                                  MetricType::Gauge));
    }
    auto per_label = [&](const char* name, const char* help, auto read) {
      auto& made = family(name, help, MetricType::Gauge);
      for (const auto& [labels, unused] : stats) {
        made.metric.push_back(Value(static_cast<double>(read(*labels)), {{"model", labels->model}}, MetricType::Gauge));
      }
    };
    per_label("palimpsest_model_parameters", "Parameters.", [](const ModelLabels& l) { return l.parameters; });
    per_label("palimpsest_model_weight_bytes", "Bytes of the slow weights in memory.",
              [](const ModelLabels& l) { return l.weight_bytes; });
    per_label("palimpsest_model_state_bytes", "Bytes of one state, so of one slot.",
              [](const ModelLabels& l) { return l.state_bytes; });
    auto per_model = [&](const char* name, const char* help, MetricType type, auto read) {
      auto& made = family(name, help, type);
      for (const auto& [labels, values] : stats) {
        made.metric.push_back(Value(static_cast<double>(read(values)), {{"model", labels->model}}, type));
      }
    };
    // Nothing at all where no model has a device.
    auto on_device = [&](const char* name, const char* help, MetricType type, auto read) {
      MetricFamily* made = nullptr;
      for (const auto& [labels, s] : stats) {
        if (s.device_total_bytes == 0) continue;
        if (made == nullptr) made = &family(name, help, type);
        made->metric.push_back(Value(static_cast<double>(read(s)), {{"model", labels->model}}, type));
      }
    };
    per_model("palimpsest_prompt_tokens_total", "Tokens of prompts processed.", MetricType::Counter,
              [](const EngineStats& s) { return s.prompt_tokens; });
    per_model("palimpsest_generated_tokens_total", "Tokens sampled.", MetricType::Counter,
              [](const EngineStats& s) { return s.generated_tokens; });
    per_model("palimpsest_cached_tokens_total", "Tokens of context that states brought along.", MetricType::Counter,
              [](const EngineStats& s) { return s.cached_tokens; });
    per_model("palimpsest_wasted_tokens_total",
              "Tokens processed for requests that ended before a token was sampled, or were quarantined.",
              MetricType::Counter, [](const EngineStats& s) { return s.wasted_tokens; });
    per_model("palimpsest_quarantined_total", "Sequences whose numbers stopped being finite.", MetricType::Counter,
              [](const EngineStats& s) { return s.quarantined; });
    per_model("palimpsest_iterations_total", "Iterations of the engine.", MetricType::Counter,
              [](const EngineStats& s) { return s.iterations; });
    per_model("palimpsest_iteration_minimum_bytes_total",
              "Minimum bytes that the iterations had to read or write: weights once, states in and out.",
              MetricType::Counter, [](const EngineStats& s) { return s.minimum_bytes; });
    per_model("palimpsest_iteration_minimum_flops_total",
              "Minimum operations of the iterations; a multiply-add counts two.", MetricType::Counter,
              [](const EngineStats& s) { return s.minimum_flops; });
    on_device("palimpsest_device_total_bytes", "Memory of the model's device.", MetricType::Gauge,
              [](const EngineStats& s) { return s.device_total_bytes; });
    on_device("palimpsest_device_free_bytes", "Free memory of the model's device.", MetricType::Gauge,
              [](const EngineStats& s) { return s.device_free_bytes; });
    on_device("palimpsest_device_wait_seconds_total",
              "What the engine has waited for its device; less than the iterations' time by what the host does alone.",
              MetricType::Counter, [](const EngineStats& s) { return absl::ToDoubleSeconds(s.device_wait); });
    on_device("palimpsest_device_recorded_passes_total", "Forward passes run again from a recording (CUDA graph).",
              MetricType::Counter, [](const EngineStats& s) { return s.recorded_passes; });
    on_device("palimpsest_device_direct_passes_total", "Forward passes launched op by op.", MetricType::Counter,
              [](const EngineStats& s) { return s.direct_passes; });
    per_model("palimpsest_requests_running", "Requests whose sequence has a slot.", MetricType::Gauge,
              [](const EngineStats& s) { return s.running; });
    per_model("palimpsest_requests_waiting", "Requests that wait for a slot.", MetricType::Gauge,
              [](const EngineStats& s) { return s.waiting; });
    per_model("palimpsest_requests_waiting_max", "Requests that may wait before new ones are refused.",
              MetricType::Gauge, [](const EngineStats& s) { return s.max_queue; });
    per_model("palimpsest_requests_paused", "Running requests paused until their readers have caught up.",
              MetricType::Gauge, [](const EngineStats& s) { return s.paused; });
    const absl::Time now = SteadyNow();
    per_model("palimpsest_queue_oldest_seconds", "How long the request that waits longest has waited; 0: none waits.",
              MetricType::Gauge, [now](const EngineStats& s) {
                return s.oldest_waiting > now ? 0.0 : absl::ToDoubleSeconds(now - s.oldest_waiting);
              });
    auto& slots = family("palimpsest_slots", "Slots of the engine.", MetricType::Gauge);
    for (const auto& [labels, s] : stats) {
      slots.metric.push_back(Value(s.slots_used, {{"model", labels->model}, {"condition", "used"}}, MetricType::Gauge));
      slots.metric.push_back(
          Value(s.slots - s.slots_used, {{"model", labels->model}, {"condition", "free"}}, MetricType::Gauge));
    }

    if (reply_bytes) {
      const auto [bytes, most] = reply_bytes();
      family("palimpsest_reply_bytes", "Memory for answers that are made, or promised, and not yet read.",
             MetricType::Gauge)
          .metric.push_back(Value(static_cast<double>(bytes), {}, MetricType::Gauge));
      family("palimpsest_reply_bytes_max", "Memory that such answers may take.", MetricType::Gauge)
          .metric.push_back(Value(static_cast<double>(most), {}, MetricType::Gauge));
    }
    if (session_counts) CollectSessions(families);
    if (request_ids) CollectRequestIds(families);
    return families;
  }

  const std::shared_ptr<prometheus::Registry> registry;  // synchronises itself, and so do its families
  const std::shared_ptr<Scraped> scraped;
  const std::shared_ptr<prometheus::Collectable> process;
  Family<Histogram>* first_token;  // constant after construction, all of them
  Family<Histogram>* per_token;
  Family<Histogram>* queue;
  Family<Histogram>* rows;
  Family<Histogram>* sequences;
  Family<Histogram>* iteration;
  Family<Histogram>* duration;
  Family<Histogram>* read;
  prometheus::Counter* stalls;
  Family<prometheus::Counter>* requests;
  Family<prometheus::Gauge>* retiring;
  Family<prometheus::Counter>* repository_loads;
  Family<prometheus::Counter>* owners_file_loads;
  Family<prometheus::Counter>* owner_requests;
  Family<prometheus::Counter>* owner_tokens;
  Family<prometheus::Counter>* finished;
  Family<prometheus::Counter>* refused_connections;
  Family<prometheus::Counter>* ended_connections;
  std::atomic<bool> ready = false;
  std::atomic<bool> accepting = true;

  mutable absl::Mutex mu;  // held while engines and sessions are asked for their counts
  std::map<std::string, ModelSource> models ABSL_GUARDED_BY(mu);
  std::function<std::map<std::string, bool>()> readiness ABSL_GUARDED_BY(mu);
  std::function<std::map<std::string, SessionStore::Counts>()> session_counts ABSL_GUARDED_BY(mu);
  std::function<std::pair<int64_t, int64_t>()> reply_bytes ABSL_GUARDED_BY(mu);
  std::unique_ptr<PageServer> page_server;  // constant after Expose
  std::function<SessionStore::Use()> session_use ABSL_GUARDED_BY(mu);
  std::function<RequestIdCounts()> request_ids ABSL_GUARDED_BY(mu);
  std::function<int64_t()> open_connections ABSL_GUARDED_BY(mu);
  int64_t max_connections ABSL_GUARDED_BY(mu) = 0;
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}

// The page's server ends first: its thread reads through `impl_`.
Metrics::~Metrics() { impl_->page_server.reset(); }

absl::StatusOr<int32_t> Metrics::Expose(const PageServerOptions& options) {
  PageServerOptions with_page = options;
  with_page.page = [this] { return Page(); };
  absl::StatusOr<std::unique_ptr<PageServer>> server = PageServer::Start(with_page);
  if (!server.ok()) return server.status();
  impl_->page_server = *std::move(server);
  return impl_->page_server->port();
}

std::string Metrics::Page() const {
  std::vector<MetricFamily> families = impl_->registry->Collect();
  for (const prometheus::Collectable* more : {static_cast<const prometheus::Collectable*>(impl_->scraped.get()),
                                              static_cast<const prometheus::Collectable*>(impl_->process.get())}) {
    for (MetricFamily& family : more->Collect()) families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

EngineObserver Metrics::Observe(const std::string& model) {
  const Impl::ModelSeries to = impl_->SeriesOf(model);
  EngineObserver observer;
  observer.on_iteration = [to](int32_t rows, int32_t sequences, absl::Duration time) {
    to.rows->Observe(rows);
    to.sequences->Observe(sequences);
    to.iteration->Observe(absl::ToDoubleSeconds(time));
  };
  observer.on_queued = [to](absl::Duration waited) { to.queue->Observe(absl::ToDoubleSeconds(waited)); };
  observer.on_first_token = [to](absl::Duration time) { to.first_token->Observe(absl::ToDoubleSeconds(time)); };
  observer.on_finish = [to](const RequestSink::Finish& finish) { to.finished.at(ReasonOf(finish))->Increment(); };
  observer.on_token = [to](absl::Duration since_last) { to.per_token->Observe(absl::ToDoubleSeconds(since_last)); };
  return observer;
}

void Metrics::AddModel(const ModelLabels& labels, std::function<EngineStats()> stats) {
  absl::MutexLock lock(&impl_->mu);
  impl_->models[labels.model] = {labels, std::move(stats)};
}

void Metrics::RemoveModel(const std::string& model) {
  absl::MutexLock lock(&impl_->mu);
  impl_->models.erase(model);
}

void Metrics::SetRetiring(const std::string& model, int32_t versions) {
  impl_->retiring->Add({{"model", model}}).Set(versions);
}

void Metrics::CountRepositoryLoad(const std::string& model, absl::string_view code) {
  impl_->repository_loads->Add({{"model", model}, {"code", std::string(code)}}).Increment();
}

void Metrics::CountOwnersFileLoad(absl::string_view code) {
  impl_->owners_file_loads->Add({{"code", std::string(code)}}).Increment();
}

void Metrics::CountOwner(absl::string_view owner, absl::string_view code, int64_t generated_tokens) {
  const std::string name(owner);
  impl_->owner_requests->Add({{"owner", name}, {"code", std::string(code)}}).Increment();
  if (generated_tokens > 0) {
    impl_->owner_tokens->Add({{"owner", name}}).Increment(static_cast<double>(generated_tokens));
  }
}

void Metrics::SetReady(bool ready) { impl_->ready = ready; }

void Metrics::SetModels(std::function<std::map<std::string, bool>()> models) {
  absl::MutexLock lock(&impl_->mu);
  impl_->readiness = std::move(models);
}

void Metrics::SetSessions(std::function<std::map<std::string, SessionStore::Counts>()> counts,
                          std::function<SessionStore::Use()> use) {
  absl::MutexLock lock(&impl_->mu);
  impl_->session_counts = std::move(counts);
  impl_->session_use = std::move(use);
}

void Metrics::SetRequestIds(std::function<RequestIdCounts()> counts) {
  absl::MutexLock lock(&impl_->mu);
  impl_->request_ids = std::move(counts);
}

void Metrics::SetConnections(std::function<int64_t()> open, int64_t most) {
  absl::MutexLock lock(&impl_->mu);
  impl_->open_connections = std::move(open);
  impl_->max_connections = most;
}

void Metrics::SetAccepting(bool accepting) { impl_->accepting = accepting; }

void Metrics::CountConnectionRefused(absl::string_view reason) {
  impl_->refused_connections->Add({{"reason", std::string(reason)}}).Increment();
}

void Metrics::CountConnectionEnded(absl::string_view reason) {
  impl_->ended_connections->Add({{"reason", std::string(reason)}}).Increment();
}

void Metrics::SetReplyBytes(std::function<std::pair<int64_t, int64_t>()> bytes) {
  absl::MutexLock lock(&impl_->mu);
  impl_->reply_bytes = std::move(bytes);
}

void Metrics::CountStalls(int32_t calls) { impl_->stalls->Increment(calls); }

void Metrics::ObserveRead(absl::string_view method, absl::Duration time) {
  impl_->read->Add({{"method", std::string(method)}}, RequestEdges()).Observe(absl::ToDoubleSeconds(time));
}

void Metrics::CountRequest(absl::string_view method, absl::string_view code, absl::Duration duration) {
  const std::string name(method);
  // What alerts look at is there from a method's first call on, so that the first of its kind is an increase.
  if (!impl_->requests->Has({{"method", name}, {"code", kAlertingCodes[0]}})) {
    for (const char* watched : kAlertingCodes) impl_->requests->Add({{"method", name}, {"code", watched}});
  }
  impl_->requests->Add({{"method", name}, {"code", std::string(code)}}).Increment();
  impl_->duration->Add({{"method", name}}, RequestEdges()).Observe(absl::ToDoubleSeconds(duration));
}

}  // namespace palimpsest
