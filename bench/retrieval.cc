// Evaluates a model of the synthetic retrieval task (2102.11174, section 6.1) with the server's own ops, and prints the
// mean loss as JSON. `./dev paper` trains such models and exports each as one safetensors file: weights, evaluation
// sequences, and settings in the header (training/paper/synthetic.py).
//
// A sequence is rows that write (key, value) followed by rows that only read, with a key of zeros and beta 0: the sum
// and delta rules leave the state as it is for those. Softmax attention has no such row; see ReadSoftmax.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/attention_norm/attention_norm.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/fast_weight/fast_weight.h"
#include "kernels/feature_map/feature_map.h"
#include "kernels/linear/linear.h"
#include "kernels/window_attention/window_attention.h"
#include "nlohmann/json.hpp"
#include "server/model/checkpoint/mapped_file.h"
#include "server/model/checkpoint/safetensors.h"

namespace palimpsest {
namespace {

using Json = nlohmann::json;
using Floats = std::vector<float>;

constexpr int64_t kMaxBytes = int64_t{1} << 30;
constexpr float kSumEps = 1e-6f;       // in the denominator of a read
constexpr int32_t kSoftmaxSlice = 64;  // values of a head of WindowAttention, which has one width for q, k and v

// A matrix of ids, one row per sequence.
struct Ids {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<int32_t> values;

  const int32_t* row(int64_t r) const { return &values[r * columns]; }
};

// An exported model. Names and shapes are those of training/paper/synthetic.py.
class RetrievalFile {
 public:
  RetrievalFile(TensorMap tensors, Json settings) : tensors_(std::move(tensors)), settings(std::move(settings)) {}

  const TensorView& Get(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) Fail(absl::StrCat("tensor '", name, "' is missing"));
    return found->second;
  }
  Floats GetFloats(const std::string& name, int64_t elements) const {
    const TensorView& tensor = Get(name);
    if (tensor.dtype != DType::kF32 || tensor.elements() != elements) {
      Fail(absl::StrCat("tensor '", name, "' is not f32 with ", elements, " elements"));
    }
    Floats values(elements);
    std::memcpy(values.data(), tensor.data, tensor.bytes());
    return values;
  }
  // Ids in [lowest, limit).
  Ids GetIds(const std::string& name, int32_t lowest, int32_t limit) const {
    const TensorView& tensor = Get(name);
    if (tensor.dtype != DType::kI32 || tensor.shape.size() != 2)
      Fail(absl::StrCat("'", name, "' is not an i32 matrix"));
    Ids ids{tensor.shape[0], tensor.shape[1], std::vector<int32_t>(tensor.elements())};
    std::memcpy(ids.values.data(), tensor.data, tensor.bytes());
    for (const int32_t id : ids.values) {
      if (id < lowest || id >= limit) Fail(absl::StrCat("'", name, "' has id ", id, ", expected below ", limit));
    }
    return ids;
  }
  [[noreturn]] static void Fail(const std::string& why) {
    std::fprintf(stderr, "retrieval_eval: %s; export the model again with ./dev paper\n", why.c_str());
    std::exit(1);
  }

 private:
  TensorMap tensors_;

 public:
  const Json settings;
};

PackedLinear Pack(const Floats& weights, int64_t out) {
  return PackedLinear::Pack(DType::kF32, weights.data(), out, static_cast<int64_t>(weights.size()) / out);
}

Floats Apply(const ExecContext& ctx, const PackedLinear& weights, const Floats& bias, const Floats& x) {
  const auto rows = static_cast<int32_t>(x.size() / weights.in());
  Floats y(rows * weights.out());
  Linear(ctx, {.weights = &weights,
               .x = x.data(),
               .ldx = weights.in(),
               .y = y.data(),
               .ldy = weights.out(),
               .rows = rows,
               .bias = bias.data()});
  return y;
}

class RetrievalModel {
 public:
  RetrievalModel(const ExecContext& ctx, const RetrievalFile& file) : ctx_(ctx) {
    const Json& settings = file.settings;
    unique_ = settings.at("unique").get<int32_t>();
    const auto rule = settings.at("rule").get<std::string>();
    softmax_ = rule == "softmax";
    delta_ = rule == "delta";
    const TensorView& table = file.Get("embedding");
    if (unique_ < 1 || table.shape.size() != 2 || table.shape[0] != unique_) {
      RetrievalFile::Fail("'embedding' does not have a row for each key");
    }
    width_ = table.shape[1];
    embedding_ = file.GetFloats("embedding", table.elements());
    const TensorView& keys = file.Get("k_proj.weight");
    dim_ = static_cast<int32_t>(keys.shape[0]);
    k_bias_ = file.GetFloats("k_proj.bias", dim_);
    q_bias_ = file.GetFloats("q_proj.bias", dim_);
    k_proj_ = Pack(file.GetFloats("k_proj.weight", dim_ * (unique_ + width_)), dim_);
    q_proj_ = Pack(file.GetFloats("q_proj.weight", dim_ * width_), dim_);
    if (delta_) {
      b_bias_ = file.GetFloats("b_proj.bias", 1);
      b_proj_ = Pack(file.GetFloats("b_proj.weight", unique_ + width_), 1);
    }
    const auto map = settings.at("feature_map").get<std::string>();
    map_ = map == "elu1"    ? FeatureMapKind::kElu1
           : map == "dpfp"  ? FeatureMapKind::kDpfp
           : map == "favor" ? FeatureMapKind::kFavor
                            : FeatureMapKind::kIdentity;
    rolls_ = settings.at("rolls").get<int32_t>();
    projections_ = settings.at("projections").get<int32_t>();
    if (map_ == FeatureMapKind::kFavor) {  // [projections, dim] in the file, the op has it transposed
      const Floats rows = file.GetFloats("projection", int64_t{projections_} * dim_);
      projection_.resize(rows.size());
      for (int64_t m = 0; m < projections_; ++m) {
        for (int64_t i = 0; i < dim_; ++i) projection_[i * projections_ + m] = rows[m * dim_ + i];
      }
    }
    features_ = FeatureCount(map_, dim_, rolls_, projections_);
  }

  int32_t unique() const { return unique_; }

  // What `queries` read after `length` pairs: [queries, unique].
  Floats Read(const int32_t* keys, const int32_t* values, int64_t length, const std::vector<int32_t>& queries) const {
    Floats pairs(length * (unique_ + width_));  // [one-hot value; embedding of the key]
    for (int64_t i = 0; i < length; ++i) {
      float* row = &pairs[i * (unique_ + width_)];
      row[values[i]] = 1.0f;
      std::copy_n(&embedding_[keys[i] * width_], width_, row + unique_);
    }
    Floats asked(queries.size() * width_);
    for (size_t i = 0; i < queries.size(); ++i) {
      std::copy_n(&embedding_[queries[i] * width_], width_, &asked[i * width_]);
    }
    const Floats k = Apply(ctx_, k_proj_, k_bias_, pairs);
    const Floats q = Apply(ctx_, q_proj_, q_bias_, asked);
    if (softmax_) return ReadSoftmax(k, q, values, length);
    Floats beta;
    if (delta_) {
      beta = Apply(ctx_, b_proj_, b_bias_, pairs);
      for (float& b : beta) b = 1.0f / (1.0f + std::exp(-b));
    }
    return ReadFastWeights(k, q, std::move(beta), values, length);
  }

 private:
  Floats Features(const Floats& x) const {
    const auto rows = static_cast<int32_t>(x.size() / dim_);
    Floats y(int64_t{rows} * features_);
    FeatureMap(ctx_, {.rows = rows,
                      .heads = 1,
                      .dim = dim_,
                      .map = map_,
                      .rolls = rolls_,
                      .projections = projections_,
                      .projection = projection_.data(),
                      .norm = delta_ ? KeyNorm::kSum : KeyNorm::kNone,
                      .x = x.data(),
                      .ldx = dim_,
                      .y = y.data(),
                      .ldy = features_});
    return y;
  }

  Floats ReadFastWeights(const Floats& keys, const Floats& queries, Floats beta, const int32_t* values,
                         int64_t length) const {
    const auto reads = static_cast<int64_t>(queries.size() / dim_);
    const auto rows = static_cast<int32_t>(length + reads);
    Floats k = Features(keys);
    k.resize(int64_t{rows} * features_);  // a row that reads writes nothing
    Floats q(length * features_);         // a row that writes reads nothing
    const Floats mapped = Features(queries);
    q.insert(q.end(), mapped.begin(), mapped.end());
    beta.resize(rows);
    Floats v(int64_t{rows} * unique_);
    for (int64_t i = 0; i < length; ++i) v[i * unique_ + values[i]] = 1.0f;

    const int32_t row_begin[] = {0, rows};
    const int32_t slot[] = {0};
    const RaggedRows ragged{.num_sequences = 1, .row_begin = row_begin, .slot = slot};
    AlignedArray<float> sums(features_), state(int64_t{unique_} * features_);
    const auto piece = [](AlignedArray<float>& array) {
      return StatePiece{.base = reinterpret_cast<std::byte*>(array.data()), .slot_stride = 0};
    };
    if (!delta_) {
      AttentionNorm(ctx_, {.heads = 1,
                           .dim = features_,
                           .rows = ragged,
                           .z = piece(sums),
                           .eps = kSumEps,
                           .q = q.data(),
                           .ldq = features_,
                           .k = k.data(),
                           .ldk = features_});
    }
    Floats out(int64_t{rows} * unique_);
    FastWeight(ctx_, {.shape = {.heads = 1, .value_heads = 1, .key_dim = features_, .value_dim = unique_},
                      .rule = delta_ ? UpdateRule::kDelta : UpdateRule::kSum,
                      .rows = ragged,
                      .state = piece(state),
                      .q = q.data(),
                      .ldq = features_,
                      .k = k.data(),
                      .ldk = features_,
                      .v = v.data(),
                      .ldv = unique_,
                      .beta = delta_ ? beta.data() : nullptr,
                      .out = out.data(),
                      .ldout = unique_});
    out.erase(out.begin(), out.begin() + length * unique_);
    return out;
  }

  // The values are wider than the keys, so heads share q and k and each holds a slice of the values. A row of the op
  // sees itself: a query brings a key so far from it that its share underflows to zero, and the next query overwrites
  // it.
  Floats ReadSoftmax(const Floats& keys, const Floats& queries, const int32_t* values, int64_t length) const {
    if (dim_ != kSoftmaxSlice) RetrievalFile::Fail(absl::StrCat("keys have ", dim_, " values, expected 64"));
    const int32_t heads = (unique_ + dim_ - 1) / dim_;
    const int64_t row = int64_t{heads} * dim_;
    const auto repeated = [&](const float* x, float factor, Floats& y) {
      for (int32_t h = 0; h < heads; ++h) {
        for (int32_t i = 0; i < dim_; ++i) y.push_back(factor * x[i]);
      }
    };
    WindowAttentionParams params;
    params.heads = heads;
    params.dim = dim_;
    params.segment = params.capacity = static_cast<int32_t>(length) + 1;
    params.scale = 1.0f / std::sqrt(static_cast<float>(dim_));
    params.ldq = params.ldk = params.ldv = params.ldout = row;
    AlignedArray<float> ring(params.ring_floats());
    params.ring = {.base = reinterpret_cast<std::byte*>(ring.data()), .slot_stride = 0};
    const int32_t slot[] = {0};
    const auto run = [&](int64_t first, int32_t rows, const Floats& q, const Floats& k, const Floats& v) {
      const int32_t row_begin[] = {0, rows};
      params.rows = {.num_sequences = 1, .row_begin = row_begin, .slot = slot};
      params.first_position = &first;
      Floats out(rows * row);
      params.q = q.data();
      params.k = k.data();
      params.v = v.data();
      params.out = out.data();
      WindowAttention(ctx_, params);
      return out;
    };
    Floats k, v(length * row);
    for (int64_t i = 0; i < length; ++i) {
      repeated(&keys[i * dim_], 1.0f, k);
      v[i * row + values[i]] = 1.0f;
    }
    run(0, static_cast<int32_t>(length), k, k, v);
    constexpr float kFar = -1e6f;
    Floats read;
    for (size_t i = 0; i < queries.size(); i += dim_) {
      Floats q, far;
      repeated(&queries[i], 1.0f, q);
      repeated(&queries[i], kFar, far);
      const Floats out = run(length, 1, q, far, Floats(row));
      read.insert(read.end(), out.begin(), out.begin() + unique_);
    }
    return read;
  }

  const ExecContext& ctx_;
  int32_t unique_ = 0;
  int32_t dim_ = 0;
  int64_t width_ = 0;
  bool softmax_ = false;
  bool delta_ = false;
  FeatureMapKind map_ = FeatureMapKind::kIdentity;
  int32_t rolls_ = 0;
  int32_t projections_ = 0;
  int32_t features_ = 0;
  Floats projection_;
  Floats embedding_;
  Floats k_bias_, q_bias_, b_bias_;
  PackedLinear k_proj_, q_proj_, b_proj_;
};

// Half the squared error, averaged over all queries of all sequences of `length` pairs.
double MeanLoss(const RetrievalModel& model, const RetrievalFile& file, int32_t length) {
  const auto ids = [&](const char* field, int32_t lowest) {
    return file.GetIds(absl::StrCat("evaluation.", length, ".", field), lowest, model.unique());
  };
  const Ids keys = ids("keys", 0), values = ids("values", 0), queries = ids("queries", -1),
            targets = ids("targets", -1);
  if (values.rows != keys.rows || queries.rows != keys.rows || targets.rows != keys.rows ||
      values.columns != keys.columns || targets.columns != queries.columns) {
    RetrievalFile::Fail("the evaluation sequences have different shapes");
  }
  double total = 0;
  int64_t count = 0;
  for (int64_t s = 0; s < keys.rows; ++s) {
    std::vector<int32_t> asked, expected;
    for (int64_t i = 0; i < queries.columns; ++i) {
      if (queries.row(s)[i] < 0) continue;  // a key that does not occur
      asked.push_back(queries.row(s)[i]);
      expected.push_back(targets.row(s)[i]);
    }
    const Floats read = model.Read(keys.row(s), values.row(s), keys.columns, asked);
    for (size_t i = 0; i < asked.size(); ++i) {
      for (int32_t u = 0; u < model.unique(); ++u) {
        const double error = double{read[i * model.unique() + u]} - (u == expected[i] ? 1.0 : 0.0);
        total += 0.5 * error * error;
      }
    }
    count += std::ssize(asked);
  }
  return total / count;
}

absl::StatusOr<RetrievalFile> Open(const MappedFile& mapped, const std::string& path) {
  absl::StatusOr<TensorMap> tensors = ParseSafetensors(mapped.bytes(), path);
  if (!tensors.ok()) return tensors.status();
  uint64_t header_bytes = 0;  // checked by ParseSafetensors
  std::memcpy(&header_bytes, mapped.bytes().data(), sizeof(header_bytes));
  const Json header = Json::parse(mapped.bytes().substr(sizeof(header_bytes), header_bytes));
  const Json settings = Json::parse(header.value("/__metadata__/settings"_json_pointer, std::string()), nullptr, false);
  if (!settings.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has no settings in its header: it is not a retrieval model"));
  }
  return RetrievalFile(*std::move(tensors), settings);
}

int Main(const std::string& path) {
  const absl::StatusOr<MappedFile> mapped = MappedFile::Open(path, kMaxBytes);
  const absl::StatusOr<RetrievalFile> file = mapped.ok() ? Open(*mapped, path) : mapped.status();
  if (!file.ok()) {
    std::fprintf(stderr, "retrieval_eval: %s\n", std::string(file.status().message()).c_str());
    return 1;
  }
  ThreadPool pool(1);
  const ExecContext ctx{&pool};
  try {
    const RetrievalModel model(ctx, *file);
    Json losses = Json::object();
    for (const Json& length : file->settings.at("lengths")) {
      losses[absl::StrCat(length.get<int32_t>())] = MeanLoss(model, *file, length.get<int32_t>());
    }
    std::printf("%s\n", Json{{"losses", losses}}.dump().c_str());
  } catch (const Json::exception& error) {
    RetrievalFile::Fail(absl::StrCat("the settings in ", path, " are damaged: ", error.what()));
  }
  return 0;
}

}  // namespace
}  // namespace palimpsest

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Prints the mean loss of an exported retrieval model.\nusage: retrieval_eval MODEL.safetensors");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 2) {
    std::fprintf(stderr, "usage: retrieval_eval MODEL.safetensors\n");
    return 2;
  }
  return palimpsest::Main(arguments[1]);
}
