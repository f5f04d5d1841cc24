package dev.edgekit

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Types of elements. [numpy] is numpy's name, [bytes] the size of one. */
public enum class DType(public val numpy: String, public val bytes: Int) {
    FLOAT32("float32", 4),
    FLOAT16("float16", 2),
    INT64("int64", 8),
    INT32("int32", 4),
    UINT8("uint8", 1),
    INT8("int8", 1),
    BOOL("bool", 1),
}

/**
 * An array of [shape], row by row. [data] is direct and little-endian, and may be shared with whoever made the tensor.
 *
 * Throws [UsageException] when the buffer is not direct or has not the bytes that the shape needs.
 */
public class Tensor(public val dtype: DType, public val shape: LongArray, data: ByteBuffer) {
    /** The elements, from position 0 to the limit. */
    public val data: ByteBuffer = data.slice().order(ByteOrder.LITTLE_ENDIAN)

    /** How many elements there are. */
    public val count: Int

    init {
        val expected = byteCount(dtype, shape)
        if (!data.isDirect) throw UsageException("tensor $this: its buffer is not direct; use ByteBuffer.allocateDirect")
        if (data.remaining().toLong() != expected) {
            throw UsageException("tensor $this: its buffer has ${data.remaining()} bytes, $expected expected")
        }
        count = data.remaining() / dtype.bytes
    }

    /** The elements as floats; whole numbers are converted. */
    public fun floats(): FloatArray = when (dtype) {
        DType.FLOAT32 -> FloatArray(count).also { data.duplicate().order(data.order()).asFloatBuffer().get(it) }
        DType.FLOAT16 -> FloatArray(count) { halfToFloat(data.getShort(2 * it)) }
        else -> FloatArray(count) { long(it).toFloat() }
    }

    /** The elements of a tensor of whole numbers. Throws [UsageException] for floats. */
    public fun longs(): LongArray = LongArray(count) { long(it) }

    private fun long(index: Int): Long = when (dtype) {
        DType.INT64 -> data.getLong(8 * index)
        DType.INT32 -> data.getInt(4 * index).toLong()
        DType.INT8 -> data.get(index).toLong()
        DType.UINT8, DType.BOOL -> data.get(index).toLong() and 0xff
        DType.FLOAT32, DType.FLOAT16 -> throw UsageException("tensor $this: whole numbers are expected")
    }

    override fun toString(): String = "${dtype.numpy} ${shape.contentToString()}"

    public companion object {
        /** A tensor of zeros. Throws [UsageException] for 2 GiB and more. */
        public fun zeros(dtype: DType, vararg shape: Long): Tensor {
            val bytes = byteCount(dtype, shape)
            if (bytes > Int.MAX_VALUE) {
                throw UsageException("tensor ${dtype.numpy} ${shape.contentToString()}: $bytes bytes, less than 2 GiB expected")
            }
            return Tensor(dtype, shape, ByteBuffer.allocateDirect(bytes.toInt()))
        }

        /** A copy of [values]. */
        public fun of(values: FloatArray, vararg shape: Long): Tensor =
            zeros(DType.FLOAT32, *shape).also { it.data.asFloatBuffer().put(values) }

        /** A copy of [values]. */
        public fun of(values: LongArray, vararg shape: Long): Tensor =
            zeros(DType.INT64, *shape).also { it.data.asLongBuffer().put(values) }

        /** Bytes of a whole array; throws [UsageException] for a size that is negative or beyond counting. */
        internal fun byteCount(dtype: DType, shape: LongArray): Long {
            var count = dtype.bytes.toLong()
            for (size in shape) {
                if (size < 0 || size > 0 && count > Long.MAX_VALUE / size) {
                    throw UsageException("tensor ${dtype.numpy} ${shape.contentToString()}: impossible size $size")
                }
                count *= size
            }
            return count
        }

        private fun halfToFloat(half: Short): Float {
            val bits = half.toInt() and 0xffff
            val sign = bits and 0x8000 shl 16
            val exponent = bits shr 10 and 0x1f
            val mantissa = bits and 0x3ff
            val magnitude = when (exponent) {
                0 -> return mantissa * (if (sign == 0) 1f else -1f) / (1 shl 24)
                0x1f -> 0x7f800000 or (mantissa shl 13)
                else -> (exponent + 112 shl 23) or (mantissa shl 13)
            }
            return java.lang.Float.intBitsToFloat(sign or magnitude)
        }
    }
}
