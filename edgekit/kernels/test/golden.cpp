#include "golden.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace edgekit {
namespace {

[[noreturn]] void stop(const std::string& where, const std::string& found, const std::string& expected) {
  std::fprintf(stderr, "%s: found %s, expected %s\n", where.c_str(), found.c_str(), expected.c_str());
  std::exit(2);
}

// As much of JSON as index.json uses: objects, lists, numbers, and strings without escapes.
struct Json {
  double number = 0;
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> members;

  const Json& operator[](const std::string& name) const {
    const auto found = members.find(name);
    if (found == members.end()) stop("index.json", "an object without " + name, "one with it");
    return found->second;
  }
};

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json document() {
    const Json whole = value();
    if (peek() != 0) stop_here("the end");
    return whole;
  }

 private:
  [[noreturn]] void stop_here(const std::string& expected) {
    stop("index.json at byte " + std::to_string(at_), at_ < text_.size() ? text_.substr(at_, 1) : "the end", expected);
  }
  char peek() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char wanted) { return peek() == wanted && ++at_; }
  void need(char wanted) {
    if (!take(wanted)) stop_here(std::string(1, wanted));
  }
  std::string string() {
    need('"');
    const size_t end = text_.find_first_of("\"\\", at_);
    if (end == std::string::npos || text_[end] != '"') stop_here("a string without escapes");
    const std::string found = text_.substr(at_, end - at_);
    at_ = end + 1;
    return found;
  }
  double number() {
    const char* const begin = text_.c_str() + at_;
    char* end = nullptr;
    const double found = std::strtod(begin, &end);
    if (end == begin) stop_here("a value: an object, a list, a string or a number");
    at_ += static_cast<size_t>(end - begin);
    return found;
  }
  Json value() {
    Json found;
    const char first = peek();
    if (first == '"') {
      found.text = string();
    } else if (take('[')) {
      for (bool more = !take(']'); more; more = !take(']')) {
        if (!found.list.empty()) need(',');
        found.list.push_back(value());
      }
    } else if (take('{')) {
      for (bool more = !take('}'); more; more = !take('}')) {
        if (!found.members.empty()) need(',');
        const std::string name = string();
        need(':');
        found.members[name] = value();
      }
    } else {
      found.number = number();
    }
    return found;
  }

  const std::string& text_;
  size_t at_ = 0;
};

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) stop(path, "no file", "one written by python -m tools.make_vectors");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

GoldenArray array_of(const Json& place, const std::string& data, const std::string& where) {
  GoldenArray array{place["dtype"].text, {}, {}};
  uint64_t bytes = array.dtype == "int64"                               ? 8
                   : array.dtype == "float32" || array.dtype == "int32" ? 4
                   : array.dtype == "float16"                           ? 2
                   : array.dtype == "uint8"                             ? 1
                                                                        : 0;
  if (bytes == 0) stop(where, "dtype " + array.dtype, "float32, float16, int32, int64 or uint8");
  for (const Json& dim : place["shape"].list) {
    array.shape.push_back(static_cast<int64_t>(dim.number));
    bytes = dim.number < 0 || dim.number > 1 << 20 ? data.size() + 1 : bytes * static_cast<uint64_t>(dim.number);
    if (bytes > data.size()) stop(where, "a shape beyond vectors.bin", "at most " + std::to_string(data.size()));
  }
  const uint64_t offset = static_cast<uint64_t>(place["offset"].number);
  if (offset > data.size() - bytes) {
    stop(where, std::to_string(offset) + " + " + std::to_string(bytes), "at most " + std::to_string(data.size()));
  }
  array.bytes.assign(data.begin() + static_cast<std::ptrdiff_t>(offset),
                     data.begin() + static_cast<std::ptrdiff_t>(offset + bytes));
  return array;
}

}  // namespace

std::vector<GoldenCase> read_golden(const std::string& directory) {
  const std::string text = read(directory + "/index.json"), data = read(directory + "/vectors.bin");
  const Json index = Parser(text).document();
  if (index["format"].number != 1) stop("index.json", "another format", "format 1");
  std::vector<GoldenCase> cases;
  for (const Json& listed : index["cases"].list) {
    GoldenCase found{listed["name"].text, listed["op"].text, {}, {}};
    for (const auto& [name, value] : listed["attributes"].members) found.attributes[name] = value.number;
    for (const auto& [name, place] : listed["arrays"].members) {
      found.arrays[name] = array_of(place, data, found.name + " " + name);
    }
    cases.push_back(found);
  }
  return cases;
}

}  // namespace edgekit
