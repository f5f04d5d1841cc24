// The golden vectors of tests/vectors/operators, as its README describes them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace edgekit {

struct GoldenArray {
  std::string dtype;  // float32, float16, int32, int64 or uint8
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
};

struct GoldenCase {
  std::string name, op;
  std::map<std::string, double> attributes;
  std::map<std::string, GoldenArray> arrays;  // inputs and outputs by their names
};

// Every case of a directory; ends the program with a message where a file is missing or is not as described.
std::vector<GoldenCase> read_golden(const std::string& directory);

}  // namespace edgekit
