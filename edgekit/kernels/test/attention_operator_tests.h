// What test_operator.cpp tests of CachedAttention: refusals word for word, failures of ONNX Runtime, threads, and
// caches in place.
#pragma once
#include <cmath>

#include "attention_arguments.h"
#include "operator_call.h"

namespace edgekit {
namespace {

// Not on 32-bit ARM: the function body runs there.
bool has_attention() {
  const OrtCustomOp* last = operators().ops.back();
  return std::strcmp(last->GetName(last), "CachedAttention") == 0;
}

const char* const kAttentionInputNames[] = {
    "query",     "key",       "value",    "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "head_sink"};

Setup setup_of_attention(const GoldenCase& golden) {
  Setup setup{kAttentionOp, false, {}, {}};
  setup.info.attention = golden.attributes;
  for (const char* name : kAttentionInputNames) {
    const auto found = golden.arrays.find(name);
    if (found == golden.arrays.end()) {
      setup.inputs.push_back({kFloat, {}, {}, false});
      continue;
    }
    const GoldenArray& array = found->second;
    setup.inputs.push_back({array.dtype == "int32" ? kInt32 : kFloat, array.shape, array.bytes});
  }
  return setup;
}

// The bytes of all outputs.
std::vector<uint8_t> results_of_attention(const GoldenCase& golden) {
  std::vector<uint8_t> bytes;
  for (const char* name : {"output", "present_key", "present_value"}) {
    const std::vector<uint8_t>& one = golden.arrays.at(name).bytes;
    bytes.insert(bytes.end(), one.begin(), one.end());
  }
  return bytes;
}

std::vector<uint8_t> numbers(std::initializer_list<int32_t> values) {
  std::vector<uint8_t> bytes(4 * values.size());
  std::memcpy(bytes.data(), values.begin(), bytes.size());
  return bytes;
}

Input floats_of(std::vector<int64_t> dims) {
  static uint32_t state = 1;
  size_t count = 1;
  for (int64_t d : dims) count *= static_cast<size_t>(d);
  std::vector<uint8_t> bytes(4 * count);
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    const float value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    std::memcpy(&bytes[4 * i], &value, 4);
  }
  return {kFloat, std::move(dims), bytes};
}

// A call that is accepted: `tokens` behind `past` others, six heads on three of `dim`, packed, all of a head turned.
Setup accepted_attention(int64_t tokens, int64_t past, int64_t dim, int64_t slots) {
  Setup setup{kAttentionOp, false, {}, {}};
  setup.info.attention = {{"num_heads", 6}, {"kv_num_heads", 3},       {"local_window_size", -1},
                          {"do_rotary", 1}, {"rotary_interleaved", 0}, {"scale", 0.25},
                          {"softcap", 0}};
  const int32_t total = static_cast<int32_t>(past + tokens);
  const Input cache = floats_of({1, 3, slots, dim}), none = {kFloat, {}, {}, false};
  const Input turns = floats_of({total, dim / 2});
  setup.inputs = {
      floats_of({1, tokens, 12 * dim}), none,  none,  cache,         cache, {kInt32, {1}, numbers({total - 1})},
      {kInt32, {1}, numbers({total})},  turns, turns, floats_of({6})};
  return setup;
}

Setup accepted_attention() { return accepted_attention(2, 5, 8, 9); }

void refuse(const std::string& found, const std::string& expected) {
  same(found, "CachedAttention: " + expected, "a refusal of CachedAttention");
}

std::string with_attribute(const char* name, double value) {
  Setup setup = accepted_attention();
  setup.info.attention[name] = value;
  return run(setup);
}

void test_attention_attributes() {
  same(run(accepted_attention()), "", "the call that the others spoil");
  const double wild[] = {-1, 0, 1 << 20};
  for (double heads : wild) {
    refuse(with_attribute("num_heads", heads),
           "attribute num_heads is " + std::to_string(static_cast<int64_t>(heads)) + ", 1 to 2^20 expected");
  }
  refuse(with_attribute("kv_num_heads", 0), "attribute kv_num_heads is 0, 1 to num_heads expected");
  refuse(with_attribute("kv_num_heads", 7), "attribute kv_num_heads is 7, 1 to num_heads expected");
  refuse(with_attribute("kv_num_heads", 4), "attribute kv_num_heads is 4, a divisor of num_heads expected");
  for (double window : {0.0, -2.0, 1073741824.0}) {
    refuse(with_attribute("local_window_size", window), "attribute local_window_size is " +
                                                            std::to_string(static_cast<int64_t>(window)) +
                                                            ", -1 (no window) or 1 to 2^30 expected");
  }
  refuse(with_attribute("do_rotary", 2), "attribute do_rotary is 2, 0 or 1 expected");
  refuse(with_attribute("rotary_interleaved", -1), "attribute rotary_interleaved is -1, 0 or 1 expected");
  for (double scale : {0.0, -1.0, 2e30, static_cast<double>(NAN)}) {
    refuse(with_attribute("scale", scale), "attribute scale is not above 0 and below 1e30");
  }
  for (double softcap : {-1.0, 2e30, static_cast<double>(NAN)}) {
    refuse(with_attribute("softcap", softcap), "attribute softcap is not 0 (none) or above, and below 1e30");
  }
  for (const auto& [name, value] : accepted_attention().info.attention) {
    Setup setup = accepted_attention();
    setup.info.attention.erase(name);
    const std::string kind = name == "scale" || name == "softcap" ? "float" : "integer";
    refuse(run(setup), "attribute " + name + " is missing or no " + kind + "; export the model again");
  }
}

void test_claims_of_queries() {
  const Setup good = accepted_attention();
  const std::string query = "query is ", few = ", fewer than 2^20 rows and tokens expected";
  refuse(claiming(good, kQuery, kFloat, {2, 96}), query + "[2, 96], [batch, tokens, heads x head size] expected");
  refuse(claiming(good, kQuery, kFloat, {1, 2, 90}),
         query + "[1, 2, 90], its last dimension is no multiple of 12 heads (packed: query, key and value)");
  refuse(claiming(good, kQuery, kFloat, {1, 2, 0}),
         query + "[1, 2, 0], its last dimension is no multiple of 12 heads (packed: query, key and value)");
  refuse(claiming(good, kQuery, kFloat, {1, 2, -96}),
         query + "[1, 2, -96], its last dimension is no multiple of 12 heads (packed: query, key and value)");
  refuse(claiming(good, kQuery, kFloat, {1, 2, 144}),
         query + "[1, 2, 144], heads of 12; a multiple of 8 up to 512 expected");
  refuse(claiming(good, kQuery, kFloat, {1, 2, 6240}),
         query + "[1, 2, 6240], heads of 520; a multiple of 8 up to 512 expected");
  refuse(claiming(good, kQuery, kFloat, {1, -2, 96}), query + "[1, -2, 96]" + few);
  refuse(claiming(good, kQuery, kFloat, {1 << 20, 2, 96}), query + "[1048576, 2, 96]" + few);
  refuse(claiming(good, kQuery, kFloat, {1, INT64_MAX, 96}), query + "[1, 9223372036854775807, 96]" + few);
  Setup apart = good;
  apart.inputs[kKey] = apart.inputs[kValue] = floats_of({1, 2, 24});
  apart.inputs[kQuery] = floats_of({1, 2, 48});
  same(run(apart), "", "key and value of their own");
  refuse(claiming(apart, kQuery, kFloat, {1, 2, 50}),
         query + "[1, 2, 50], its last dimension is no multiple of 6 heads");
  const std::string as_query = ", [1, 2, 24] expected (as query, kv_num_heads heads)";
  refuse(claiming(apart, kKey, kFloat, {1, 2, 16}), "key is [1, 2, 16]" + as_query);
  refuse(claiming(apart, kKey, kFloat, {1, 1, 24}), "key is [1, 1, 24]" + as_query);
  refuse(claiming(apart, kValue, kFloat, {2, 24}), "value is [2, 24]" + as_query);
  refuse(claiming(apart, kValue, kFloat16, {1, 2, 24}), "value has element type 10, float32 expected");
}

void test_claims_of_caches() {
  const Setup good = accepted_attention();
  const std::string right = ", [1, 3, 9, 8] expected (batch, kv_num_heads, positions, head size)";
  refuse(claiming(good, kPastKey, kFloat, {1, 2, 9, 8}), "past_key is [1, 2, 9, 8]" + right);
  refuse(claiming(good, kPastKey, kFloat, {2, 3, 9, 8}), "past_key is [2, 3, 9, 8]" + right);
  refuse(claiming(good, kPastKey, kFloat, {1, 3, 9, 16}), "past_key is [1, 3, 9, 16]" + right);
  refuse(claiming(good, kPastKey, kFloat, {3, 9, 8}),
         "past_key is [3, 9, 8], [1, 3, 0, 8] expected (batch, kv_num_heads, positions, head size)");
  refuse(claiming(good, kPastKey, kFloat, {1, 3, -1, 8}),
         "past_key is [1, 3, -1, 8], [1, 3, 0, 8] expected (batch, kv_num_heads, positions, head size)");
  refuse(claiming(good, kPastKey, kFloat, {1, 3, 1 << 30, 8}),
         "past_key is [1, 3, 1073741824, 8], fewer than 2^30 positions expected");
  refuse(claiming(good, kPastValue, kFloat, {1, 3, 8, 8}), "past_value is [1, 3, 8, 8]" + right);
  refuse(claiming(good, kPastValue, kFloat, {1, 3, 10, 8}), "past_value is [1, 3, 10, 8]" + right);
}

std::string at_positions(std::vector<int64_t> dims, std::initializer_list<int32_t> ends, int32_t total) {
  Setup setup = accepted_attention();
  setup.inputs[kEnds] = {kInt32, std::move(dims), numbers(ends)};
  setup.inputs[kTotal] = {kInt32, {}, numbers({total})};
  return run(setup);
}

void test_claims_of_positions() {
  same(at_positions({1, 1}, {6}, 7), "", "seqlens_k as a column, a scalar total");
  refuse(at_positions({2}, {6, 6}, 7), "seqlens_k is [2], [1] expected (batch)");
  refuse(at_positions({1, 2}, {6, 6}, 7), "seqlens_k is [1, 2], [1, 1] expected (batch)");
  refuse(at_positions({}, {6}, 7), "seqlens_k is [], [1] expected (batch)");
  const std::string of = " (of 2 new tokens the last) to 6 (total_sequence_length) expected";
  for (int32_t end : {0, -1, 7, 9, INT32_MAX, INT32_MIN}) {
    refuse(at_positions({1}, {end}, 7), "seqlens_k of row 0 is " + std::to_string(end) + ", 1" + of);
  }
  for (int32_t total : {1, 0, -7, 1 << 30, INT32_MAX, INT32_MIN}) {
    refuse(at_positions({1}, {6}, total),
           "total_sequence_length is " + std::to_string(total) + ", 2 (the new tokens) to 2^30 expected");
  }
  const Setup good = accepted_attention();
  refuse(claiming(good, kTotal, kInt32, {2}), "total_sequence_length is [2], [1] expected (one number)");
  refuse(claiming(good, kTotal, kInt32, {1, 1}), "total_sequence_length is [1, 1], [1] expected (one number)");
}

void test_claims_of_turns() {
  const Setup good = accepted_attention();
  refuse(claiming(good, kCos, kFloat, {7, 5}), "cos_cache is [7, 5], [positions, 1 to 4] expected");
  refuse(claiming(good, kCos, kFloat, {7, 0}), "cos_cache is [7, 0], [positions, 1 to 4] expected");
  refuse(claiming(good, kCos, kFloat, {28}), "cos_cache is [28], [positions, 1 to 4] expected");
  refuse(claiming(good, kSin, kFloat, {7, 3}), "sin_cache is [7, 3], [7, 4] expected (as cos_cache)");
  refuse(claiming(good, kSin, kFloat, {6, 4}), "sin_cache is [6, 4], [7, 4] expected (as cos_cache)");
  Setup short_of_one = good;
  short_of_one.inputs[kCos] = short_of_one.inputs[kSin] = floats_of({6, 4});
  refuse(run(short_of_one), "cos_cache is [6, 4], a token stands at position 6");
  refuse(claiming(good, kSink, kFloat, {5}), "head_sink is [5], [6] expected (num_heads)");
  refuse(claiming(good, kSink, kFloat, {6, 1}), "head_sink is [6, 1], [6] expected (num_heads)");
}

void test_inputs_of_attention() {
  for (size_t i = 0; i < kAttentionInputs; ++i) {
    const bool optional = i == kKey || i == kValue || i == kSink, number = i == kEnds || i == kTotal;
    const std::string name = kAttentionInputNames[i];
    Setup left_out = accepted_attention(), other = left_out, ended = left_out;
    left_out.inputs[i].present = false;
    ended.inputs.resize(i);
    same(run(left_out), optional ? "" : "CachedAttention: " + name + " is missing", "without " + name);
    const size_t next = i == kKey || i == kValue ? size_t{kPastKey} : i;
    same(run(ended), i == kSink ? "" : "CachedAttention: " + std::string(kAttentionInputNames[next]) + " is missing",
         "inputs before " + name);
    if (i == kKey || i == kValue) continue;
    other.inputs[i].type = number ? kFloat : kInt32;
    refuse(run(other), name + " has element type " + (number ? "1, int32" : "6, float32") + " expected");
  }
}

// Every call of ONNX Runtime fails once: few rows, and tiles.
void test_injected_failures_of_attention(int64_t tokens) {
  const Setup setup = accepted_attention(tokens, 70, 16, 72);
  fake::calls = 0;
  same(run(setup), "", "before failures are injected");
  const int calls = fake::calls;
  check(calls >= 40, "calls of ONNX Runtime are counted");
  for (int i = 0; i < calls; ++i) {
    fake::calls = 0, fake::fail_at = i;
    const std::string found = run(setup), where = "call " + std::to_string(i) + " of " + std::to_string(calls);
    if (i < 7) check(found.find("CachedAttention: attribute ") == 0, where + ", of an attribute, fails: " + found);
    if (i >= 7) same(found, "injected failure", where + " fails");
  }
  fake::fail_at = -1;
  here::free_fails = true;
  same(run(setup), "AllocatorFree failed", "memory cannot be given back");
  here::free_fails = false;
}

void test_no_tokens() {
  Setup setup = accepted_attention();
  std::vector<uint8_t> found;
  std::vector<int64_t> shape;
  setup.inputs[kQuery] = floats_of({1, 0, 96});
  same(run(setup, "", &found, &shape), "", "no tokens");
  check(shape == std::vector<int64_t>{1, 0, 48}, "no tokens give no rows");
  for (AttentionInput input : {kQuery, kPastKey, kPastValue}) setup.inputs[input].dims[0] = 0;
  setup.inputs[kEnds] = {kInt32, {0}, {}};
  same(run(setup, "", &found, &shape), "", "no rows");
  check(shape == std::vector<int64_t>{0, 0, 48}, "no rows give no rows");
}

// Enough for several parts, in threads and alone, new caches and in place, on each instruction set.
void test_attention_threads(const std::string& isa) {
  if (!has_attention()) return;
  for (int64_t tokens : {1, 3, 40}) {
    Setup setup = accepted_attention(tokens, 300, 64, 300 + tokens);
    std::vector<uint8_t> expected, found;
    same(run(setup, "scalar", &expected, nullptr), "", "scalar");
    for (bool in_place : {false, true}) {
      for (bool threads : {false, true}) {
        setup.in_place = in_place, here::threads = threads;
        same(run(setup, isa, &found, nullptr), "", "attention");
        const std::string where = std::string(in_place ? ", in place" : "") + (threads ? ", threads" : "");
        check(found == expected, isa + ", " + std::to_string(tokens) + " tokens" + where + ": other bits");
      }
    }
    here::threads = false;
  }
}

void test_attention_refusals() {
  if (!has_attention()) return;
  test_attention_attributes();
  test_claims_of_queries();
  test_claims_of_caches();
  test_claims_of_positions();
  test_claims_of_turns();
  test_inputs_of_attention();
  test_no_tokens();
  for (int64_t tokens : {1, 9}) test_injected_failures_of_attention(tokens);
}

}  // namespace
}  // namespace edgekit
